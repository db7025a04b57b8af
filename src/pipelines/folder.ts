/** @file Model folders as diffusers writes them: configs, tokenizers and weights of each component. */

import { existsSync } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { isAbsolute, join, relative } from "node:path";
import { type Graph, parametersOf } from "../graph/index.ts";
import type { ExternalTensor } from "../onnx/index.ts";
import type { CompileOptions } from "../runtime/index.ts";
import { ClipTokenizer, type TokenizerFiles } from "../tokenizers/index.ts";
import { matchKeys, SafetensorsFile } from "../weights/index.ts";

/** @throws a sentence that names the file when it is missing or not JSON. */
export async function readJson(path: string): Promise<Record<string, unknown>> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw error.code === "ENOENT" ? new Error(`${path}: no such file`, { cause: error }) : error;
  });
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${path} is not valid JSON`, { cause: error });
  }
}

/** A tokenizer folder: vocab.json, merges.txt, tokenizer_config.json. */
export async function tokenizerFiles(folder: string): Promise<TokenizerFiles> {
  const vocab = (await readJson(join(folder, "vocab.json"))) as Record<string, number>;
  const text = await readFile(join(folder, "merges.txt"), "utf8");
  const merges = text
    .split("\n")
    .filter((line, i) => line !== "" && !(i === 0 && line.startsWith("#version")));
  const config = await readJson(join(folder, "tokenizer_config.json"));
  const pad = config.pad_token as string | { content: string } | undefined;
  const maxLength = (config.model_max_length as number | undefined) ?? 77;
  return { vocab, merges, maxLength, pad: typeof pad === "object" ? pad.content : pad };
}

export async function readTokenizer(folder: string): Promise<ClipTokenizer> {
  return new ClipTokenizer(await tokenizerFiles(folder));
}

/** The weights file of a component, full or half precision. */
export function weightsFile(folder: string): string {
  const names = ["diffusion_pytorch_model", "model"].flatMap((n) => [
    `${n}.safetensors`,
    `${n}.fp16.safetensors`,
  ]);
  const found = names.map((n) => join(folder, n)).find((p) => existsSync(p));
  if (!found) throw new Error(`${folder} has no weights: expected one of ${names.join(", ")}`);
  return found;
}

/**
 * Bytes up to which weights are handed to ONNX Runtime in memory. Larger files are read in place, which it does
 * below the working directory only, and then without the optimisations that look into weights.
 */
const IN_MEMORY = 2 ** 28;

/**
 * What `compile` needs to run a graph on the weights of files, in place. `prefixes` maps key prefixes of the graph
 * to files ("" for all keys).
 * @throws one error that lists missing and misshapen keys; left-over ones only where `whole` is set.
 */
export async function weightsOf(
  g: Graph,
  files: Readonly<Record<string, string>>,
): Promise<Pick<CompileOptions, "weights" | "externalData">> {
  const weights = new Map<string, ExternalTensor>();
  const externalData: { path: string; data: Uint8Array }[] = [];
  for (const [prefix, path] of Object.entries(files)) {
    await using file = await SafetensorsFile.open(path);
    const needed = parametersOf(g).filter((p) => p.name.startsWith(prefix));
    const expected = Object.fromEntries(needed.map((p) => [p.name.slice(prefix.length), p.shape]));
    const used = Object.fromEntries([...file.entries].filter(([k]) => Object.hasOwn(expected, k)));
    matchKeys(path, expected, used);
    let location = relative(process.cwd(), path);
    const { size } = await stat(path);
    if (size <= IN_MEMORY || location.startsWith("..") || isAbsolute(location)) {
      location = `weights-${externalData.length}`;
      externalData.push({ path: location, data: await readFile(path) });
    }
    for (const { name } of needed)
      weights.set(name, { location, ...file.entries.get(name.slice(prefix.length))! });
  }
  return { weights, externalData };
}

/**
 * Checks a component's whole key list against its file, both ways.
 * @param ignore keys that files may carry and no graph needs, such as the encoder when only decoding.
 */
export async function checkKeys(
  path: string,
  g: Graph,
  ignore: (key: string) => boolean = () => false,
): Promise<void> {
  await using file = await SafetensorsFile.open(path);
  const actual = Object.fromEntries([...file.entries].filter(([k]) => !ignore(k)));
  matchKeys(path, Object.fromEntries(parametersOf(g).map((p) => [p.name, p.shape])), actual);
}
