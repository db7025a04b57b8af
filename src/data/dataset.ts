/** @file What training reads: pictures with captions, in buckets of one size, with what conditions SDXL. */

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { writePlanes } from "../platform/index.ts";
import { type FloatTensor, floats } from "../tensor/index.ts";
import { loadSafetensors } from "../weights/index.ts";
import type { Bucket } from "./buckets.ts";
import { caption, captionCorpus } from "./captions.ts";
import type { IconRow } from "./icons.ts";

export interface Dataset {
  readonly length: number;
  /** Those that have pictures. */
  readonly buckets: readonly Bucket[];
  /** A caption of a picture; `random` draws one where there are several. */
  caption(index: number, random: () => number): string;
  /** Texts to learn a vocabulary from. */
  corpus(): string[];
  /** Pictures of one bucket as float32 [B,3,H,W] in [−1,1]. */
  pixels(indices: readonly number[]): Promise<FloatTensor>;
  /** SDXL's micro-conditioning: original_size, crop_top_left, target_size, each vertical first. */
  timeIds(index: number): [number, number, number, number, number, number];
  /** For messages. */
  name(index: number): string;
  /** Changes when the pixels of a picture do. */
  id(index: number): string;
}

/** The rendered icons, in memory. */
export interface Icons extends Dataset {
  readonly rows: readonly IconRow[];
  /** Side of the pictures. */
  readonly size: number;
  /** RGB bytes of one picture. */
  image(index: number): Uint8Array;
}

/** Loads a folder that `buildIcons` wrote; `splits` selects rows (default: all). */
export async function loadIcons(folder: string, splits?: readonly IconRow["split"][]): Promise<Icons> {
  const { tensors } = await loadSafetensors(join(folder, "images.safetensors"));
  const { data, shape } = tensors.images;
  const size = shape[1];
  const bytes = size * size * 3;
  const text = await readFile(join(folder, "metadata.jsonl"), "utf8");
  const all = text
    .trimEnd()
    .split("\n")
    .map((line, i) => ({ row: JSON.parse(line) as IconRow, i }));
  const kept = all.filter(({ row }) => !splits || splits.includes(row.split));
  const image = (index: number) =>
    (data as Uint8Array).subarray(kept[index].i * bytes, (kept[index].i + 1) * bytes);
  const rows = kept.map(({ row }) => row);
  return {
    length: rows.length,
    size,
    rows,
    image,
    buckets: [{ width: size, height: size, members: rows.map((_, i) => i) }],
    caption: (index, random) => caption(rows[index], random),
    corpus: () => captionCorpus(rows),
    pixels: async (indices) => {
      const out = floats([indices.length, 3, size, size]);
      for (const [b, index] of indices.entries()) writePlanes(image(index), out.data, b * bytes);
      return out;
    },
    timeIds: () => [size, size, 0, 0, size, size],
    name: (index) => rows[index].id,
    id: (index) => createHash("sha256").update(image(index)).digest("hex"),
  };
}
