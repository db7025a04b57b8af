/**
 * @file Finds pictures with captions: name.png + name.txt, metadata.jsonl (Hugging Face's imagefolder), or
 * WebDataset shards. Datasets come from strangers: no path leaves the folder, every read has a bound.
 */

import { readdir, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, relative, resolve, sep } from "node:path";
import { type Part, readPart, tarEntries } from "./archive.ts";

/**
 * - `pairs`: name.png|jpg|jpeg|webp beside name.txt, in the folder and below.
 * - `metadata`: metadata.jsonl with `{"file_name", "text" | "caption" | "prompt"}` rows, names relative to it.
 * - `webdataset`: .tar shards of key.png + key.txt, or key.json with a caption under one of these names.
 */
export type Convention = "pairs" | "metadata" | "webdataset";

export interface Skipped {
  /** Relative to the dataset; `metadata.jsonl:3` is a line, `shard.tar/key.png` a file in an archive. */
  file: string;
  reason: string;
}

export interface FoundPicture {
  file: string;
  part: Part;
  caption: string;
}

const PICTURE = /\.(png|jpe?g|webp)$/i;
const METADATA = "metadata.jsonl";
/** Bytes of one caption file, and of one metadata.jsonl. */
const MAX_CAPTION = 1 << 20;
const MAX_METADATA = 1 << 28;

/** The first line of what went wrong. */
export function reasonOf(error: unknown): string {
  return String((error as Error).message).split("\n")[0];
}

/**
 * Looks a dataset up without decoding any picture, in an order that depends on names alone.
 * @param path a folder, one .tar shard or one metadata.jsonl.
 * @param convention default: metadata.jsonl where there is one, else pairs where there are pictures, else shards.
 */
export async function* findPictures(
  path: string,
  convention?: Convention,
): AsyncGenerator<FoundPicture | Skipped> {
  const given = await realpath(path);
  const single = (await stat(given)).isFile();
  const root = single ? dirname(given) : given;
  const files = single ? [basename(given)] : await listFiles(root);
  const isMetadata = (f: string) => basename(f) === METADATA;
  const isShard = (f: string) => f.endsWith(".tar");
  if (!convention) {
    if (files.some(isMetadata)) convention = "metadata";
    else if (files.some((f) => PICTURE.test(f))) convention = "pairs";
    else if (files.some(isShard)) convention = "webdataset";
    else throw new Error(`${path}: no pictures; expected name.png + name.txt, ${METADATA} or .tar shards`);
  }
  if (convention === "pairs") yield* pairs(root, files);
  else if (convention === "metadata") for (const file of files.filter(isMetadata)) yield* rows(root, file);
  else for (const file of files.filter(isShard)) yield* samples(root, file);
}

/** Names relative to the folder, with "/", sorted by code unit. Hidden names and linked folders are left out. */
async function listFiles(root: string): Promise<string[]> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  return entries
    .filter((e) => e.isFile() || e.isSymbolicLink())
    .map((e) => relative(root, join(e.parentPath, e.name)).replaceAll(sep, "/"))
    .filter((name) => !/(^|\/)\./.test(name))
    .sort();
}

/** @throws unless the path is a regular file inside the folder, before and after links are followed. */
async function locate(root: string, ...names: string[]): Promise<Part> {
  const name = names.at(-1);
  const inside = (p: string) => p.startsWith(root.endsWith(sep) ? root : root + sep);
  const asked = resolve(root, ...names);
  if (!inside(asked)) throw new Error(`${name} lies outside the dataset`);
  const path = await realpath(asked).catch(() => undefined);
  if (!path) throw new Error(`${name} does not exist`);
  if (!inside(path)) throw new Error(`${name} is a link that leaves the dataset`);
  const info = await stat(path, { bigint: true });
  if (!info.isFile()) throw new Error(`${name} is not a file`);
  return { path, offset: 0, bytes: Number(info.size), stamp: `${info.size}:${info.mtimeNs}` };
}

/** @throws when it is not UTF-8. */
async function readText(part: Part, limit: number): Promise<string> {
  return new TextDecoder("utf-8", { fatal: true }).decode(await readPart(part, limit));
}

/** @throws when there is none. Line breaks become spaces. */
function captionOf(source: unknown): string {
  const { text, caption, prompt } = (source ?? {}) as Record<string, unknown>;
  const found = [source, text, caption, prompt].find((v) => typeof v === "string") as string | undefined;
  const clean = found?.replace(/\s+/g, " ").trim();
  if (!clean) throw new Error("no caption");
  return clean;
}

async function attempt<T>(file: string, look: () => T | Promise<T>): Promise<T | Skipped> {
  try {
    return await look();
  } catch (error) {
    return { file, reason: reasonOf(error) };
  }
}

async function* pairs(root: string, files: readonly string[]): AsyncGenerator<FoundPicture | Skipped> {
  const all = new Set(files);
  for (const file of files)
    if (PICTURE.test(file))
      yield attempt(file, async () => {
        const part = await locate(root, file);
        const text = file.replace(PICTURE, ".txt");
        if (!all.has(text)) throw new Error(`no caption: ${text} is missing`);
        return { file, part, caption: captionOf(await readText(await locate(root, text), MAX_CAPTION)) };
      });
}

async function* rows(root: string, file: string): AsyncGenerator<FoundPicture | Skipped> {
  const text = await attempt(file, async () => readText(await locate(root, file), MAX_METADATA));
  if (typeof text !== "string") return yield text;
  for (const [i, line] of text.split("\n").entries())
    if (line.trim())
      yield attempt(`${file}:${i + 1}`, async () => {
        const row = JSON.parse(line) as { file_name?: unknown } | null;
        const name = row?.file_name;
        if (typeof name !== "string" || !name) throw new Error("no file_name");
        const part = await locate(root, dirname(file), name);
        return { file: relative(root, part.path).replaceAll(sep, "/"), part, caption: captionOf(row) };
      });
}

/** Files of one sample share a key: the path up to the first dot of the name, as WebDataset has it. */
async function* samples(root: string, file: string): AsyncGenerator<FoundPicture | Skipped> {
  const found = new Map<string, Map<string, { name: string; part: Part }>>();
  const failure = await attempt(file, async () => {
    for await (const entry of tarEntries(await locate(root, file))) {
      const [, key = "", extension = ""] = /^((?:.*\/)?[^/.]*)\.([^/]*)$/s.exec(entry.name) ?? [];
      const sample = found.get(key) ?? new Map();
      found.set(key, sample.set(extension.toLowerCase(), entry));
    }
  });
  for (const sample of found.values()) {
    const [, picture] = [...sample].find(([extension]) => /^(png|jpe?g|webp)$/.test(extension)) ?? [];
    const text = sample.get("txt") ?? sample.get("json");
    if (picture)
      yield attempt(`${file}/${picture.name}`, async () => {
        if (!text) throw new Error("no caption: its key has no .txt and no .json");
        const content = await readText(text.part, MAX_CAPTION);
        const caption = captionOf(sample.has("txt") ? content : JSON.parse(content));
        return { file: `${file}/${picture.name}`, part: picture.part, caption };
      });
  }
  if (failure) yield failure;
}
