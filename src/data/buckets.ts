/** @file Aspect buckets: the sizes, which picture goes where, and which batch comes when. */

import { Generator } from "../tensor/index.ts";

export interface Size {
  /** Pixels. */
  width: number;
  height: number;
}

export interface Bucket extends Size {
  /** Indices of its pictures, in order. */
  members: readonly number[];
}

export interface BucketOptions {
  /** Side of the square bucket; no bucket has more pixels. A multiple of `step`. */
  size: number;
  /** Sides are multiples of this: what the autoencoder and the UNet halve together (64 for SDXL). */
  step: number;
  /** Longest side over shortest. Default 2. */
  maxAspect?: number;
}

/**
 * Sizes of at most `size`² pixels, widest last: for every width the tallest height that fits, and both turned by
 * 90° (NovelAI 2022, "Improvements on Stable Diffusion", Aspect Ratio Bucketing; SDXL, appendix I).
 */
export function aspectBuckets({ size, step, maxAspect = 2 }: BucketOptions): Size[] {
  if (![size, step].every((n) => Number.isSafeInteger(n) && n > 0) || size % step !== 0)
    throw new Error(`buckets: size ${size} must be a multiple of the step ${step}`);
  if (!(maxAspect >= 1)) throw new Error(`buckets: maxAspect is ${maxAspect}, expected 1 or more`);
  const sizes = new Map<string, Size>();
  for (let width = size; width <= size * maxAspect; width += step) {
    const height = Math.floor(size ** 2 / width / step) * step;
    if (height === 0 || width > height * maxAspect) continue;
    sizes.set(`${width}x${height}`, { width, height });
    sizes.set(`${height}x${width}`, { width: height, height: width });
  }
  return [...sizes.values()].sort((a, b) => a.width / a.height - b.width / b.height);
}

/** Index of the bucket of the nearest aspect, by ratio; of two as near, the larger. */
export function nearestBucket({ width, height }: Size, buckets: readonly Size[]): number {
  const distance = (b: Size) => Math.abs(Math.log((width * b.height) / (height * b.width)));
  const better = (a: Size, b: Size) => distance(a) - distance(b) || b.width * b.height - a.width * a.height;
  return buckets.reduce((best, b, i) => (better(b, buckets[best]) < 0 ? i : best), 0);
}

/** The size that covers a bucket, and the corner (y, x) of its centre crop in the resized picture. */
export function coverCrop(picture: Size, bucket: Size): { resized: Size; cropTopLeft: [number, number] } {
  const scale = Math.max(bucket.width / picture.width, bucket.height / picture.height);
  const width = Math.max(bucket.width, Math.round(picture.width * scale));
  const height = Math.max(bucket.height, Math.round(picture.height * scale));
  const cropTopLeft: [number, number] = [(height - bucket.height) >> 1, (width - bucket.width) >> 1];
  return { resized: { width, height }, cropTopLeft };
}

export interface BatchSamplerOptions {
  /** Indices of the pictures in each bucket. */
  members: readonly (readonly number[])[];
  /** Pictures in a micro-batch. Training graphs are static: every batch is full. */
  batch: number;
  seed: number;
}

/** Which micro-batch of a step. */
export interface BatchPlace {
  step: number;
  /** From 0, among those of all replicas. */
  micro: number;
  micros: number;
}

export interface BatchSampler {
  /** Micro-batches in which the pictures are seen once on average. */
  readonly perEpoch: number;
  /** A micro-batch, known from its place alone, so that a resumed run is the same run. */
  at(place: BatchPlace): { bucket: number; indices: number[] };
  /** Every picture of a bucket once, in order; the last batch may be short. */
  batchesOf(bucket: number): number[][];
}

/**
 * Draws micro-batches of one bucket each. An epoch has a fixed number of them; a bucket's share is its part of the
 * pictures, rounded up or down at random so that it is right on average (systematic resampling), and within it
 * pictures come in random order without repetition, unless the bucket has fewer than its batches hold.
 */
export function batchSampler({ members, batch, seed }: BatchSamplerOptions): BatchSampler {
  const total = members.reduce((n, m) => n + m.length, 0);
  if (total === 0) throw new Error("batches: there are no pictures");
  const perEpoch = Math.max(1, Math.round(total / batch));
  let memo = { epoch: -1, batches: [] as { bucket: number; indices: number[] }[] };
  const epochBatches = (epoch: number) => {
    const g = new Generator((Math.imul(seed, 0x9e3779b1) + Math.imul(epoch + 1, 0x85ebca6b)) >>> 0);
    const offset = g.random();
    let [seen, reached] = [0, 0];
    const batches = members.flatMap((all, bucket) => {
      seen += all.length;
      const count = Math.min(perEpoch, Math.floor((seen / total) * perEpoch + offset)) - reached;
      reached += count;
      const order = shuffled(all, g);
      const pick = (i: number) => order[i % order.length];
      return Array.from({ length: count }, (_, i) => ({
        bucket,
        indices: Array.from({ length: batch }, (_, j) => pick(i * batch + j)),
      }));
    });
    return shuffled(batches, g);
  };
  return {
    perEpoch,
    at: ({ step, micro, micros }) => {
      if (micro >= micros) throw new Error(`batches: there is no micro-batch ${micro} among ${micros}`);
      const place = step * micros + micro;
      const epoch = Math.floor(place / perEpoch);
      if (memo.epoch !== epoch) memo = { epoch, batches: epochBatches(epoch) };
      return memo.batches[place % perEpoch];
    },
    batchesOf: (bucket) => chunks(members[bucket], batch),
  };
}

/** A list in pieces of `size`; the last may be short. */
export function chunks<T>(list: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(list.length / size) }, (_, i) =>
    list.slice(i * size, (i + 1) * size),
  );
}

/** Fisher–Yates. */
function shuffled<T>(list: readonly T[], g: Generator): T[] {
  const out = [...list];
  for (let i = out.length - 1; i > 0; i--) {
    const j = g.integer(i + 1);
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}
