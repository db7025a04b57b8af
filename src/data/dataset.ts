/** @file What training reads: pictures with captions and the sizes that condition SDXL. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { loadSafetensors } from "../weights/index.ts";
import { caption } from "./captions.ts";
import type { IconRow } from "./icons.ts";

export interface Sample {
  /** RGB, row by row. */
  image: Uint8Array;
  width: number;
  height: number;
  caption: string;
  /** Size before any resizing, (height, width). */
  originalSize: readonly [number, number];
  /** Corner of the crop, (y, x). */
  cropTopLeft: readonly [number, number];
}

export interface Dataset {
  readonly length: number;
  /** The picture at an index; `random` draws its caption. */
  sample(index: number, random: () => number): Promise<Sample>;
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
  return {
    length: kept.length,
    size,
    rows: kept.map(({ row }) => row),
    image,
    sample: async (index, random) => ({
      image: image(index),
      width: size,
      height: size,
      caption: caption(kept[index].row, random),
      originalSize: [size, size],
      cropTopLeft: [0, 0],
    }),
  };
}
