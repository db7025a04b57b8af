/** @file The noise that a picture starts from, and that samplers add. */

import { type FloatTensor, floats, Generator, sizeOf } from "../tensor/index.ts";

/**
 * "per-image": picture i has a generator of its own with seed + i (AUTOMATIC1111, a list of generators in
 * diffusers). "stream": one generator fills the whole batch (one generator in diffusers). "comfyui": the same, but
 * what samplers add comes from another one, with seed + 1.
 */
export const NOISE_RULES = ["per-image", "stream", "comfyui"] as const;
export type NoiseRule = (typeof NOISE_RULES)[number];

export interface NoiseOptions {
  /** Of torch's CPU generator, 0 to 2⁶⁴ − 1. */
  seed: number | bigint;
  /** [B,C,h,w] */
  shape: readonly number[];
  /** Default "per-image". */
  rule?: NoiseRule;
}

/**
 * Draws unit noise, bit for bit that of torch.randn on the CPU: first what the pictures start from, then what
 * samplers add, as diffusers draws on from the same generators.
 */
export function noiseStream({ seed, shape, rule = "per-image" }: NoiseOptions): () => FloatTensor {
  const [B, ...rest] = shape;
  if (rule !== "per-image") {
    const first = new Generator(seed);
    const added = rule === "comfyui" ? new Generator(seedOf(seed, 1)) : first;
    let generator = first;
    return () => {
      const noise = generator.randn(shape);
      generator = added;
      return noise;
    };
  }
  const generators = Array.from({ length: B }, (_, b) => new Generator(seedOf(seed, b)));
  return () => {
    const out = floats(shape);
    for (const [b, generator] of generators.entries())
      out.data.set(generator.randn([1, ...rest]).data, b * sizeOf(rest));
    return out;
  };
}

/** The first noise of the stream. */
export function initialNoise(options: NoiseOptions): FloatTensor {
  return noiseStream(options)();
}

/** seed + i, wrapping at 2⁶⁴. */
export function seedOf(seed: number | bigint, i: number): number | bigint {
  const sum = BigInt.asUintN(64, BigInt(seed) + BigInt(i));
  return typeof seed === "number" && sum <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(sum) : sum;
}
