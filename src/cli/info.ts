/** @file `fewstep info`: what is this file? */

import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import type { Completeness } from "../pipelines/index.ts";
import { failureOf, UsageError } from "./errors.ts";

/** Pictures larger than this are not read into memory. */
const MAX_PICTURE_BYTES = 2 ** 30;

/** Longer values of a weights file, such as whole configs, are not printed. */
const MAX_METADATA = 1000;

/** What is printed: as JSON, or as lines of `key: value`. */
type Facts = Readonly<Record<string, unknown>>;

export function infoCommand(program: Command): void {
  program
    .command("info")
    .description("tell what a picture, a weight file or a model folder holds")
    .argument("<path>", ".png, .safetensors, or a folder in diffusers layout")
    .option("--json", "print one JSON object")
    .action(async (path: string, options: { json?: boolean }) => {
      const facts = await factsOf(path);
      if (options.json) console.log(JSON.stringify({ file: path, ...facts }));
      else printFacts({ file: path, ...facts });
    });
}

async function factsOf(path: string): Promise<Facts> {
  const stat = statSync(path);
  if (stat.isDirectory()) return modelFacts(path);
  if (!stat.isFile()) throw new UsageError(`${path}: not a regular file`);
  if (path.endsWith(".safetensors")) return { kind: "weights", ...(await contentFacts(path)) };
  const { isPng } = await import("../platform/index.ts");
  const head = firstBytes(path, 8);
  const { foreignFormat } = await weightReader();
  const foreign = foreignFormat(head);
  if (foreign) throw new UsageError(`${path}: ${foreign}`);
  if (!isPng(head))
    throw new UsageError(`${path}: neither a PNG picture, nor a .safetensors file, nor a model folder`);
  if (stat.size > MAX_PICTURE_BYTES)
    throw new UsageError(
      `${path}: ${stat.size} bytes are too many for a picture; at most ${MAX_PICTURE_BYTES}`,
    );
  return pictureFacts(path);
}

async function pictureFacts(path: string): Promise<Facts> {
  const { parseParameters, readPng } = await import("../platform/index.ts");
  const { width, height, texts } = await readPng(readFileSync(path)).catch((error: Error) => {
    throw new UsageError(`${path}: ${error.message}`);
  });
  const facts = { kind: "picture", width, height };
  const parameters = texts.find((t) => t.keyword === "parameters");
  const others = Object.fromEntries(texts.filter((t) => t !== parameters).map((t) => [t.keyword, t.text]));
  const rest = texts.length > (parameters ? 1 : 0) ? { texts: others } : {};
  if (!parameters) return { ...facts, ...rest };
  const { prompt, negativePrompt, fields } = parseParameters(parameters.text);
  return { ...facts, prompt, negativePrompt, parameters: Object.fromEntries(fields), ...rest };
}

/** Apart: where `await using` stands too, tsc 6.0 leaves the extension of a dynamic import as it is. */
const weightReader = () => import("../weights/index.ts");
const pipelines = () => import("../pipelines/index.ts");

/** Names of tensors that are printed of each list. */
const MAX_NAMES = 8;

/** What one file holds, told from its keys and shapes, what it is for, how it wants to be sampled, and its counts. */
async function contentFacts(path: string): Promise<Facts> {
  const { loraSummary, SafetensorsFile } = await weightReader();
  const { describeFile, toldSampling } = await pipelines();
  const counts = await weightFacts(path);
  await using file = await SafetensorsFile.open(path);
  const { kind, text, family, use, complete } = await describeFile(path);
  const lora = kind === "lora" ? { lora: await loraSummary(file) } : {};
  const sampling = toldSampling(file);
  return {
    holds: text,
    ...(family ? { family } : {}),
    use,
    ...(complete ? { complete: completeFacts(complete) } : {}),
    ...lora,
    ...(sampling ? { sampling } : {}),
    ...counts,
  };
}

/** "yes", or lists of what is not as it should be. */
function completeFacts({ missing, left, wrong, unused }: Completeness): Facts | string {
  const lists = { missing, "left over": left, "of another shape": wrong, "not needed": unused };
  const shown = Object.entries(lists).flatMap(([what, names]) => {
    const more = names.length > MAX_NAMES ? [`… ${names.length} in all`] : [];
    return names.length > 0 ? [[what, [...names.slice(0, MAX_NAMES), ...more]] as const] : [];
  });
  const isWhole = missing.length + left.length + wrong.length === 0;
  return shown.length > 0 ? { whole: isWhole ? "yes" : "no", ...Object.fromEntries(shown) } : "yes";
}

/** Counts over the tensors of one file; the data itself is not read. */
async function weightFacts(path: string): Promise<Facts> {
  const { SafetensorsFile } = await weightReader();
  await using file = await SafetensorsFile.open(path);
  let parameters = 0;
  let bytes = 0;
  const dtypes: Record<string, number> = {};
  for (const entry of file.entries.values()) {
    parameters += entry.shape.reduce((n, d) => n * d, 1);
    bytes += entry.bytes;
    dtypes[entry.dtype] = (dtypes[entry.dtype] ?? 0) + 1;
  }
  const metadata = Object.fromEntries(
    Object.entries(file.metadata).map(([key, value]) => [
      key,
      value.length > MAX_METADATA ? `(${value.length} characters)` : value,
    ]),
  );
  const facts = { tensors: file.entries.size, parameters, bytes, dtypes };
  return Object.keys(metadata).length > 0 ? { ...facts, metadata } : facts;
}

/** Components as `model_index.json` lists them (diffusers layout), with class and weights. */
async function modelFacts(folder: string): Promise<Facts> {
  const index = readJson(join(folder, "model_index.json"));
  if (!index) throw new UsageError(`${folder}: not a model folder: it has no model_index.json`);
  const { componentCompleteness } = await pipelines();
  const components: Record<string, Facts> = {};
  for (const [name, entry] of Object.entries(index)) {
    // [library, class]; null where an optional component is left out
    if (!Array.isArray(entry) || typeof entry[1] !== "string" || !/^\w+$/.test(name)) continue;
    const part = join(folder, name);
    const files = existsSync(part) ? readdirSync(part).filter((file) => file.endsWith(".safetensors")) : [];
    const weights: Record<string, Facts> = {};
    for (const file of files.sort())
      weights[file] = await weightFacts(join(part, file)).catch((error) => {
        throw new UsageError(`${part}: ${failureOf(error).message}`); // files of all components have one name
      });
    const complete = await componentCompleteness(folder, name).catch((error) => failureOf(error).message);
    components[name] = {
      class: entry[1],
      ...(files.length > 0 ? { weights } : {}),
      ...(complete ? { complete: typeof complete === "string" ? complete : completeFacts(complete) } : {}),
    };
  }
  const own = index.fewstep ? { fewstep: index.fewstep } : {};
  return { kind: "model", pipeline: String(index._class_name), ...own, components };
}

/** Undefined when there is no such file. */
function readJson(path: string): Record<string, unknown> | undefined {
  if (!existsSync(path)) return undefined;
  try {
    const value: unknown = JSON.parse(readFileSync(path, "utf8"));
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      return value as Record<string, unknown>;
  } catch {}
  throw new UsageError(`${path}: not a JSON object`);
}

function firstBytes(path: string, count: number): Uint8Array {
  const bytes = new Uint8Array(count);
  const file = openSync(path, "r");
  try {
    return bytes.subarray(0, readSync(file, bytes, 0, count, 0));
  } finally {
    closeSync(file);
  }
}

/** `key: value` lines; nested objects are indented below their key. */
function printFacts(facts: Facts, indent = ""): void {
  for (const [key, value] of Object.entries(facts)) {
    if (Array.isArray(value) && value.every((x) => typeof x !== "object"))
      console.log(`${indent}${printable(key)}: ${printable(value.join(", "))}`);
    else if (typeof value === "object" && value !== null) {
      console.log(`${indent}${printable(key)}:`);
      printFacts(value as Facts, `${indent}  `);
    } else console.log(`${indent}${printable(key)}: ${printable(String(value))}`);
  }
}

/** Text from a file may carry escape sequences that a terminal would obey. */
function printable(text: string): string {
  return text.replace(/[^\P{Cc}\n\t]/gu, "\ufffd");
}
