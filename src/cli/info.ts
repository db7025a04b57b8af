/** @file `fewstep info`: what is this file? */

import { openSync, readFileSync, readSync, statSync } from "node:fs";
import type { Command } from "commander";
import { UsageError } from "./errors.ts";

/** Pictures larger than this are not read into memory. */
const MAX_PICTURE_BYTES = 2 ** 30;

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
  const { isPng } = await import("../platform/index.ts");
  if (!stat.isFile()) throw new UsageError(`${path}: not a file`);
  if (isPng(firstBytes(path, 8))) {
    if (stat.size > MAX_PICTURE_BYTES)
      throw new UsageError(
        `${path}: ${stat.size} bytes are too many for a picture; at most ${MAX_PICTURE_BYTES}`,
      );
    return pictureFacts(path);
  }
  throw new UsageError(`${path}: neither a PNG picture, nor a .safetensors file, nor a model folder`);
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

function firstBytes(path: string, count: number): Uint8Array {
  const bytes = new Uint8Array(count);
  const file = openSync(path, "r");
  return bytes.subarray(0, readSync(file, bytes, 0, count, 0));
}

/** `key: value` lines; nested objects are indented below their key. */
function printFacts(facts: Facts, indent = ""): void {
  for (const [key, value] of Object.entries(facts)) {
    if (typeof value === "object" && value !== null) {
      console.log(`${indent}${printable(key)}:`);
      printFacts(value as Facts, `${indent}  `);
    } else console.log(`${indent}${printable(key)}: ${printable(String(value))}`);
  }
}

/** Text from a file may carry escape sequences that a terminal would obey. */
function printable(text: string): string {
  return text.replace(/[^\P{Cc}\n\t]/gu, "\ufffd");
}
