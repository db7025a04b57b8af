/** @file A dataset of the user's pictures, in aspect buckets, decoded on demand. */

import { createHash } from "node:crypto";
import sharp from "sharp";
import { writePlanes } from "../platform/index.ts";
import { floats } from "../tensor/index.ts";
import { readPart } from "./archive.ts";
import { aspectBuckets, type BucketOptions, chunks, coverCrop, nearestBucket, type Size } from "./buckets.ts";
import type { Dataset } from "./dataset.ts";
import { type Convention, type FoundPicture, findPictures, reasonOf, type Skipped } from "./folder.ts";

export interface LoadPicturesOptions extends BucketOptions {
  /** A folder, one .tar shard or one metadata.jsonl. */
  path: string;
  /** Default: recognised. */
  convention?: Convention;
  /** Pictures that are larger, or would be when they cover their bucket, are not decoded. Default 100 million. */
  maxPixels?: number;
  /** Decodes every picture once, which finds damage beyond the header before training does. Default true. */
  verify?: boolean;
  onProgress?: (done: number, total: number) => void;
}

export interface BucketPicture extends FoundPicture {
  /** Index in `Pictures.buckets`. */
  bucket: number;
  resized: Size;
  /** (height, width) before resizing, upright. */
  originalSize: readonly [number, number];
  /** (y, x) in the resized picture. */
  cropTopLeft: readonly [number, number];
}

export interface Pictures extends Dataset {
  readonly pictures: readonly BucketPicture[];
  readonly report: { used: number; skipped: readonly Skipped[] };
}

/** Bytes of one picture's file. */
const MAX_FILE = 1 << 28;
/** Pictures that are looked at together. */
const TOGETHER = 4;

/** PNG, JPEG or WebP by content: libvips knows more formats, which strangers' files need not reach. */
function isPicture(b: Buffer): boolean {
  const starts = b.toString("latin1", 0, 12);
  return (
    starts.startsWith("\x89PNG\r\n") || starts.startsWith("\xff\xd8\xff") || /^RIFF.{4}WEBP/s.test(starts)
  );
}

/**
 * Loads a dataset of pictures with captions. Each goes to the bucket of the nearest aspect, resized to cover it
 * and cropped at the centre. What cannot be used is skipped and named in `report`.
 * @throws when nothing is left.
 */
export async function loadPictures(options: LoadPicturesOptions): Promise<Pictures> {
  const { path, convention, maxPixels = 100_000_000, verify = true, onProgress } = options;
  const sizes = aspectBuckets(options);
  const skipped: Skipped[] = [];
  const pictures: BucketPicture[] = [];

  const decoder = async ({ part }: FoundPicture) => {
    const bytes = await readPart(part, MAX_FILE);
    if (!isPicture(bytes)) throw new Error("not a PNG, JPEG or WebP file");
    return sharp(bytes, { limitInputPixels: maxPixels, failOn: "error" }).autoOrient();
  };
  const look = async (found: FoundPicture | Skipped): Promise<BucketPicture | Skipped> => {
    if ("reason" in found) return found;
    try {
      const image = await decoder(found);
      const size = (await image.metadata()).autoOrient;
      if (verify) await image.resize(16, 16, { fit: "fill" }).raw().toBuffer();
      const bucket = nearestBucket(size, sizes);
      const crop = coverCrop(size, sizes[bucket]);
      if (crop.resized.width * crop.resized.height > maxPixels)
        throw new Error(`${size.width}×${size.height} is too long and thin`);
      return { ...found, bucket, originalSize: [size.height, size.width], ...crop };
    } catch (error) {
      return { file: found.file, reason: reasonOf(error) };
    }
  };

  const found: (FoundPicture | Skipped)[] = [];
  for await (const one of findPictures(path, convention)) found.push(one);
  for (const [i, some] of chunks(found, TOGETHER).entries()) {
    for (const p of await Promise.all(some.map(look))) "reason" in p ? skipped.push(p) : pictures.push(p);
    onProgress?.(i * TOGETHER + some.length, found.length);
  }
  if (pictures.length === 0) {
    const [first] = skipped;
    const why = first
      ? `${skipped.length} skipped, the first is ${first.file}: ${first.reason}`
      : "it is empty";
    throw new Error(`${path}: no usable picture with a caption (${why})`);
  }

  const all = sizes.map((size) => ({ ...size, members: [] as number[] }));
  for (const [i, p] of pictures.entries()) all[p.bucket].members.push(i);
  const buckets = all.filter(({ members }) => members.length > 0);
  for (const p of pictures) p.bucket = buckets.indexOf(all[p.bucket]);

  const rgb = async (index: number): Promise<Buffer> => {
    const picture = pictures[index];
    const { width, height } = buckets[picture.bucket];
    const [top, left] = picture.cropTopLeft;
    try {
      return await (await decoder(picture))
        .resize({ ...picture.resized, fit: "fill" })
        .extract({ left, top, width, height })
        .flatten({ background: "#ffffff" })
        .toColourspace("srgb")
        .raw()
        .toBuffer();
    } catch (error) {
      throw new Error(`${picture.file}: ${reasonOf(error)}; it could be read before`, { cause: error });
    }
  };
  return {
    length: pictures.length,
    pictures,
    buckets,
    report: { used: pictures.length, skipped },
    caption: (index) => pictures[index].caption,
    corpus: () => pictures.map((p) => p.caption),
    name: (index) => pictures[index].file,
    id: (index) => {
      const { file, part, bucket, resized, cropTopLeft } = pictures[index];
      const { width, height } = buckets[bucket];
      const what = JSON.stringify([file, part.stamp, width, height, resized, cropTopLeft]);
      return createHash("sha256").update(what).digest("hex");
    },
    pixels: async (indices) => {
      const bucket = pictures[indices[0]].bucket;
      const odd = indices.find((i) => pictures[i].bucket !== bucket);
      if (odd !== undefined) throw new Error(`${pictures[odd].file} is of another bucket than its batch`);
      const { width, height } = buckets[bucket];
      const area = width * height;
      const out = floats([indices.length, 3, height, width]);
      for (const [b, index] of indices.entries()) {
        writePlanes(await rgb(index), out.data, 3 * b * area);
      }
      return out;
    },
    timeIds: (index) => {
      const { bucket, originalSize, cropTopLeft } = pictures[index];
      const { width, height } = buckets[bucket];
      return [...originalSize, ...cropTopLeft, height, width];
    },
  };
}
