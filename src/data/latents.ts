/** @file Latents of pictures on disk, so that the autoencoder runs once and not every epoch. */

import { createHash } from "node:crypto";
import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type FloatTensor, floats, toFloat32 } from "../tensor/index.ts";
import { SafetensorsFile, saveSafetensors } from "../weights/index.ts";
import { chunks } from "./buckets.ts";
import type { Dataset } from "./dataset.ts";

export interface LatentCacheOptions {
  dataset: Pick<Dataset, "length" | "buckets" | "name" | "id">;
  /** Latents [B,C,h,w] of pictures of one bucket, at most `batch`. */
  encode: (indices: readonly number[]) => Promise<FloatTensor>;
  /** What latents depend on besides the picture: a hash of the autoencoder's weights, its scaling. */
  key: string;
  /** For this cache alone: cache files in it that no picture needs any more are removed. */
  folder: string;
  /** Default 4. */
  batch?: number;
  onProgress?: (done: number, total: number) => void;
}

export interface LatentCache extends AsyncDisposable {
  /** Pictures that were encoded now, and those whose latents were there. */
  readonly encoded: number;
  readonly reused: number;
  /** Latents of pictures of one bucket, [B,C,h,w]. */
  latents(indices: readonly number[]): Promise<FloatTensor>;
}

/** Pictures in a file, which is how much an interrupted run can lose. */
const SHARD = 512;
const NAME = /^latents-[0-9a-f]{16}\.safetensors$/;

function sha256(...parts: readonly unknown[]): string {
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}

/**
 * Opens the cache and encodes what is missing. A picture's entry is named by a hash of its id and of `key`: what
 * changed is not found, and so encoded anew, and a
 * dataset that grew keeps the rest. Damaged files are removed. Build it before workers start.
 * @throws when `encode` gives another shape, or values that are not finite.
 */
export async function latentCache(options: LatentCacheOptions): Promise<LatentCache> {
  const { dataset, encode, key, folder, batch = 4, onProgress } = options;
  const ids = Array.from({ length: dataset.length }, (_, i) => sha256(dataset.id(i), key));
  const wanted = new Set(ids);
  const files = new Set<SafetensorsFile>();
  const places = new Map<string, SafetensorsFile>();

  const adopt = async (path: string) => {
    const file = await SafetensorsFile.open(path).catch((error) => {
      if (error.code) throw error; // of the system: no reason to remove anything
    });
    const found = [...(file?.entries.keys() ?? [])].filter((id) => wanted.has(id));
    if (file && found.length > 0) {
      files.add(file);
      for (const id of found) places.set(id, file);
      return;
    }
    await file?.close();
    await rm(path);
  };
  const encodeAll = async (indices: readonly number[]) => {
    const { shape, data } = await encode(indices);
    if (shape.length !== 4 || shape[0] !== indices.length)
      throw new Error(`latents: ${indices.length} pictures were encoded to [${shape}], expected [B,C,h,w]`);
    const n = data.length / indices.length;
    return indices.map((index, b): [string, FloatTensor] => {
      const latent = floats(shape.slice(1), data.slice(b * n, (b + 1) * n));
      if (!latent.data.every(Number.isFinite))
        throw new Error(`${dataset.name(index)}: its latents are not finite; run the encoder in float32`);
      return [ids[index], latent];
    });
  };
  const close = async () => {
    for (const file of files) await file.close();
  };

  await mkdir(folder, { recursive: true });
  for (const name of await readdir(folder)) if (NAME.test(name)) await adopt(join(folder, name));
  const missing = dataset.buckets.map(({ members }) => members.filter((i) => !places.has(ids[i])));
  const total = missing.flat().length;
  let done = 0;
  try {
    for (const indices of missing.flatMap((m) => chunks(m, SHARD))) {
      const tensors: [string, FloatTensor][] = [];
      for (const some of chunks(indices, batch)) {
        tensors.push(...(await encodeAll(some)));
        done += some.length;
        onProgress?.(done, total);
      }
      const path = join(folder, `latents-${sha256(...indices.map((i) => ids[i])).slice(0, 16)}.safetensors`);
      await saveSafetensors(path, Object.fromEntries(tensors));
      await adopt(path);
    }
  } catch (error) {
    await close();
    throw error;
  }
  return {
    encoded: total,
    reused: ids.length - total,
    latents: async (indices) => {
      const parts = await Promise.all(indices.map((i) => places.get(ids[i])!.read(ids[i])));
      const [{ shape, data }] = parts;
      if (parts.some((p) => p.shape.join() !== shape.join()))
        throw new Error("latents: the pictures of a batch must be of one bucket");
      const out = floats([parts.length, ...shape]);
      for (const [b, part] of parts.entries()) out.data.set(toFloat32(part).data, b * data.length);
      return out;
    },
    [Symbol.asyncDispose]: close,
  };
}
