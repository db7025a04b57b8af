/** @file The noise that a picture starts from. */

import { type FloatTensor, floats, Generator, sizeOf } from "../tensor/index.ts";

/**
 * "per-image": picture i has a generator of its own with seed + i (AUTOMATIC1111, a list of generators in
 * diffusers). "stream": one generator fills the whole batch (ComfyUI, one generator in diffusers).
 */
export type NoiseRule = "per-image" | "stream";

export interface NoiseOptions {
  /** Of torch's CPU generator, 0 to 2⁶⁴ − 1. */
  seed: number | bigint;
  /** [B,C,h,w] */
  shape: readonly number[];
  /** Default "per-image". */
  rule?: NoiseRule;
}

/** Unit noise, bit for bit that of torch.randn on the CPU. */
export function initialNoise({ seed, shape, rule = "per-image" }: NoiseOptions): FloatTensor {
  if (rule === "stream") return new Generator(seed).randn(shape);
  const [B, ...rest] = shape;
  const out = floats(shape);
  for (let b = 0; b < B; b++)
    out.data.set(new Generator(seedOf(seed, b)).randn([1, ...rest]).data, b * sizeOf(rest));
  return out;
}

/** seed + i, wrapping at 2⁶⁴. */
export function seedOf(seed: number | bigint, i: number): number | bigint {
  const sum = BigInt.asUintN(64, BigInt(seed) + BigInt(i));
  return typeof seed === "number" && sum <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(sum) : sum;
}
