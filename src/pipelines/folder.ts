/** @file Model folders as diffusers writes them: configs, tokenizers and weights of each component. */

import { existsSync, readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type Graph, parametersOf } from "../graph/index.ts";
import type { HostTensor } from "../tensor/index.ts";
import { ClipTokenizer, type TokenizerFiles } from "../tokenizers/index.ts";
import { loadSafetensors, matchKeys, quote, SafetensorsFile, type TensorEntry } from "../weights/index.ts";

/** @throws a sentence that names the file when it is missing or not a JSON object. */
export async function readJson(path: string): Promise<Record<string, unknown>> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") throw new Error(`${path}: no such file`, { cause: error });
    throw Object.assign(error, { path }); // reading a folder does not name it
  });
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new Error(`${path} is not valid JSON`, { cause: error });
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new Error(`${path}: not a JSON object`);
  return json as Record<string, unknown>;
}

/** Runs `f`; what it throws is told with the path it is about. System errors name theirs. */
export async function about<T>(path: string, f: () => T | Promise<T>): Promise<T> {
  try {
    return await f();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code) throw error;
    throw new Error(`${path}: ${(error as Error).message}`, { cause: error });
  }
}

/** A config of a component, checked by `parse`. */
export async function readConfig<T>(path: string, parse: (json: unknown) => T): Promise<T> {
  const json = await readJson(path);
  return about(path, () => parse(json));
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
  const files = await tokenizerFiles(folder);
  return about(folder, () => new ClipTokenizer(files));
}

/** Ways in which diffusers and transformers name the weights of a component; full precision goes first. */
const WEIGHT_NAMES = ["", ".fp16"].flatMap((variant) =>
  ["diffusion_pytorch_model", "model"].map((stem) => ({
    file: `${stem}${variant}.safetensors`,
    index: `${stem}.safetensors.index${variant}.json`,
  })),
);

/**
 * The files with the weights of a component: one, or the parts that an index lists.
 * @throws a sentence when there are none, or an index lists none or files elsewhere.
 */
export async function weightsFiles(folder: string): Promise<string[]> {
  for (const { file, index } of WEIGHT_NAMES) {
    if (existsSync(join(folder, file))) return [join(folder, file)];
    if (existsSync(join(folder, index))) return indexedFiles(join(folder, index));
  }
  const pickled = existsSync(folder) && readdirSync(folder).some((name) => /\.(bin|ckpt|pt|pth)$/.test(name));
  const names = WEIGHT_NAMES.map(({ file }) => file).join(", ");
  throw new Error(
    `${folder} has no weights: expected one of ${names}, or their index` +
      (pickled ? "; PyTorch's pickles, which can run code, are never opened" : ""),
  );
}

async function indexedFiles(index: string): Promise<string[]> {
  const { weight_map: map } = await readJson(index);
  const names = new Set(typeof map === "object" && map !== null ? Object.values(map) : []);
  if (names.size === 0) throw new Error(`${index}: no weight_map that lists files`);
  return [...names].sort().map((name) => {
    if (typeof name !== "string" || !/^\w[\w.-]*\.safetensors$/.test(name))
      throw new Error(`${index}: lists ${quote(name)}; expected .safetensors files beside it`);
    return join(dirname(index), name);
  });
}

/** The one weights file of a component. */
export function weightsFile(folder: string): string {
  const found = WEIGHT_NAMES.map(({ file }) => join(folder, file)).find((path) => existsSync(path));
  if (!found)
    throw new Error(
      `${folder} has no weights: expected one of ${WEIGHT_NAMES.map(({ file }) => file).join(", ")}`,
    );
  return found;
}

/** All tensors of a component. */
export async function loadWeights(folder: string): Promise<Record<string, HostTensor>> {
  const paths = await weightsFiles(folder);
  const files = await Promise.all(paths.map((path) => about(folder, () => loadSafetensors(path))));
  return Object.assign({}, ...files.map(({ tensors }) => tensors));
}

/** A buffer that older versions of transformers saved. */
const POSITIONS = /\.position_ids$/;

/** Tensors under the names of a graph: places in a file, or copies where the file has them in another order. */
export interface WeightSource {
  path: string;
  tensors: ReadonlyMap<string, TensorEntry | HostTensor>;
}

/** All tensors of a file, or of several that share a folder, under their own names. */
export async function sourceOf(paths: readonly string[]): Promise<WeightSource> {
  const folder = dirname(paths[0]);
  const tensors = new Map<string, TensorEntry>();
  for (const path of paths) {
    await using file = await about(folder, () => SafetensorsFile.open(path));
    for (const [name, entry] of file.entries) {
      if (tensors.has(name)) throw new Error(`${folder}: ${quote(name)} is in two files`);
      tensors.set(name, entry);
    }
  }
  return { path: paths.length > 1 ? folder : paths[0], tensors };
}

/** What `compile` needs to run a graph on the weights of files. */
export class PlacedWeights {
  readonly weights = new Map<string, TensorEntry | HostTensor>();
  /** The files. */
  readonly paths = new Set<string>();

  /** @throws a sentence that names a tensor which cannot be a weight. */
  add(path: string, tensors: ReadonlyMap<string, TensorEntry | HostTensor>): void {
    for (const [name, t] of tensors) {
      if (!t.dtype.includes("float"))
        throw new Error(`${path}: ${name} is ${t.dtype}; weights are floats of 32, 16 or 8 bits`);
      this.weights.set(name, t);
      this.paths.add("path" in t ? t.path : path);
    }
  }
}

/**
 * The weights of a graph. `sources` maps key prefixes of the graph to files ("" for all keys).
 * @param unused left-over keys that are no mistake, such as the encoder's when only decoding.
 * @throws one error that lists missing, left-over and misshapen keys.
 */
export async function weightsOf(
  g: Graph,
  sources: Readonly<Record<string, string | WeightSource>>,
  unused: RegExp = POSITIONS,
): Promise<PlacedWeights> {
  const placed = new PlacedWeights();
  for (const [prefix, given] of Object.entries(sources)) {
    const { path, tensors } = typeof given === "string" ? await sourceOf([given]) : given;
    const needed = parametersOf(g).filter((p) => p.name.startsWith(prefix));
    const expected = Object.fromEntries(needed.map((p) => [p.name.slice(prefix.length), p.shape]));
    const actual = [...tensors].filter(([k]) => Object.hasOwn(expected, k) || !unused.test(k));
    matchKeys(path, expected, Object.fromEntries(actual));
    const used = needed.map(({ name }) => [name, tensors.get(name.slice(prefix.length))!] as const);
    placed.add(path, new Map(used));
  }
  return placed;
}
