/** @file What training reads: pictures with captions, in buckets of one size, with what conditions SDXL. */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { writePlanes } from "../platform/index.ts";
import { type FloatTensor, floats, type HostTensor } from "../tensor/index.ts";
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

function rowOf(line: string): IconRow | undefined {
  try {
    const row: Partial<IconRow> = JSON.parse(line);
    const texts = [row.id, row.concept, row.style, row.label, row.split];
    const fits = texts.every((text) => typeof text === "string") && Array.isArray(row.keywords);
    return fits ? (row as IconRow) : undefined;
  } catch {
    return undefined;
  }
}

/** Loads a folder that `buildIcons` wrote; `splits` selects rows (default: all). */
export async function loadIcons(folder: string, splits?: readonly IconRow["split"][]): Promise<Icons> {
  const refuse = (what: string): never => {
    throw new Error(`${folder}: not an icon dataset: ${what}; make one with \`fewstep data icons\``);
  };
  const file = join(folder, "images.safetensors");
  if (!existsSync(file)) refuse("it has no images.safetensors");
  const { tensors } = await loadSafetensors(file).catch((error: NodeJS.ErrnoException) => {
    throw error.code ? error : new Error(`${folder}: ${error.message}`, { cause: error });
  });
  const images: HostTensor | undefined = tensors.images;
  const [count, size, width, channels] = images?.shape ?? [];
  if (images?.dtype !== "uint8" || size !== width || channels !== 3)
    refuse("its images are not uint8 [N,size,size,3]");
  const data = images.data as Uint8Array;
  const bytes = size * size * 3;
  const text = await readFile(join(folder, "metadata.jsonl"), "utf8");
  const all = text
    .trimEnd()
    .split("\n")
    .map((line, i) => ({ row: rowOf(line) ?? refuse(`line ${i + 1} of metadata.jsonl is no picture`), i }));
  if (all.length !== count) refuse(`${count} images, but ${all.length} lines in metadata.jsonl`);
  const kept = all.filter(({ row }) => !splits || splits.includes(row.split));
  const image = (index: number) => data.subarray(kept[index].i * bytes, (kept[index].i + 1) * bytes);
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
