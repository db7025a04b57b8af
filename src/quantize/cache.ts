/**
 * @file The file with a network's int8 weights: everything that the network runs on, so that ONNX Runtime reads it in
 * place. Its metadata says what it was made of and how, and a file that does not fit is made again.
 */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { open, stat, utimes } from "node:fs/promises";
import { z } from "zod";
import { fileHash, removeAbandoned, withTemporary } from "../platform/index.ts";
import type { HostTensor } from "../tensor/index.ts";
import { SafetensorsFile, type TensorEntry, tensorSource, writeSafetensors } from "../weights/index.ts";
import type { CalibratedPart, Choices } from "./calibrate.ts";

/** Changes with what the tensors mean. */
const VERSION = 2;
const FIELD = "fewstep.int8";

const schema = z.object({
  version: z.literal(VERSION),
  sources: z.array(z.object({ size: z.number(), modified: z.number(), sha256: z.string() })),
  choices: z.object({ bits: z.number(), minimum: z.number(), threshold: z.number() }),
  /** dB of every layer that could be int8. */
  layers: z.record(z.string(), z.number().nullable()),
  /** Of the tensors' bytes. */
  sha256: z.string(),
  /** Time of the last change that the file itself has; another one means that someone touched it. */
  written: z.number(),
});
type Description = z.infer<typeof schema>;

export interface CacheKey {
  path: string;
  /** Files that the weights come from. */
  sources: readonly string[];
  choices: Choices;
}

/** Why a cache file cannot be used: it is not there, of other files or choices, or not as it was written. */
export interface Unusable {
  reason: "missing" | "stale" | "damaged";
}

/** Layers of a usable file with their SNR in dB; or why it is not usable. */
export async function openCache(key: CacheKey): Promise<{ snr: Map<string, number> } | Unusable> {
  if (!existsSync(key.path)) return { reason: "missing" };
  let description: Description;
  let start = 0;
  try {
    await using file = await SafetensorsFile.open(key.path);
    const parsed = schema.safeParse(JSON.parse(file.metadata[FIELD] ?? "null"));
    if (!parsed.success) return { reason: "stale" };
    description = parsed.data;
    start = Math.min(...[...file.entries.values()].map(({ offset }) => offset));
  } catch {
    return { reason: "damaged" };
  }
  const { choices, sources, layers } = description;
  if (choices.bits !== key.choices.bits || choices.minimum !== key.choices.minimum)
    return { reason: "stale" };
  if (choices.threshold !== key.choices.threshold || sources.length !== key.sources.length)
    return { reason: "stale" };
  for (const [i, path] of key.sources.entries())
    if (!(await isUnchanged(path, sources[i]))) return { reason: "stale" };
  if ((await stat(key.path)).mtimeMs !== description.written) {
    if ((await fileHash(key.path, start)) !== description.sha256) return { reason: "damaged" };
    await touch(key.path, description.written); // a copy
  }
  return { snr: new Map(Object.entries(layers).map(([name, snr]) => [name, snr ?? Number.NaN])) };
}

/** Whether a file is the one that was read then: by size and time, else by content. */
async function isUnchanged(path: string, then: Description["sources"][number]): Promise<boolean> {
  const { size, mtimeMs } = await stat(path);
  return size === then.size && (mtimeMs === then.modified || (await fileHash(path)) === then.sha256);
}

async function touch(path: string, time: number): Promise<void> {
  await utimes(path, time / 1000, time / 1000);
}

/**
 * Writes the file, atomically. What the parts bring goes to a temporary file first: which tensors there are is known
 * at the end.
 * @returns SNR of the layers, and what the parts' generator returns.
 */
export async function writeCache<R>(
  { path, sources, choices }: CacheKey,
  parts: AsyncGenerator<CalibratedPart, R>,
): Promise<{ snr: Map<string, number>; result: R }> {
  const described = await Promise.all(
    sources.map(async (source) => {
      const { size, mtimeMs: modified } = await stat(source);
      return { size, modified, sha256: await fileHash(source) };
    }),
  );
  const snr = new Map<string, number>();
  const entries = new Map<string, TensorEntry>();
  const written = Math.floor(Date.now() / 1000) * 1000;
  const result = await withTemporary(path, async (temporary) => {
    const digest = createHash("sha256");
    const file = await open(temporary, "w");
    let offset = 0;
    const put = async (name: string, { dtype, shape, data }: HostTensor): Promise<void> => {
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      await file.writeFile(bytes);
      digest.update(bytes);
      entries.set(name, { path: temporary, dtype, shape, offset, bytes: bytes.length });
      offset += bytes.length;
    };
    try {
      let part = await parts.next();
      for (; !part.done; part = await parts.next()) {
        for (const [name, db] of part.value.snr) snr.set(name, db);
        for (const [name, tensor] of part.value.tensors) if (!entries.has(name)) await put(name, tensor);
      }
      const layers = Object.fromEntries(snr);
      const sha256 = digest.digest("hex");
      const description = { version: VERSION, sources: described, choices, layers, sha256, written };
      const tensors = [...entries].map(([name, entry]) => [name, tensorSource(entry)] as const);
      await writeSafetensors(path, new Map(tensors), { [FIELD]: JSON.stringify(description) });
      return part.value;
    } finally {
      await file.close();
    }
  });
  await touch(path, written);
  removeAbandoned(path);
  return { snr, result };
}
