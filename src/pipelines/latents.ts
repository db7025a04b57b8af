/** @file Between the VAE's own latents and those the UNet is trained on: zero mean, unit deviation. */

import type { VaeConfig } from "../models/index.ts";
import { type FloatTensor, floats } from "../tensor/index.ts";

export type Scaling = Pick<VaeConfig, "scaling_factor"> &
  Partial<Pick<VaeConfig, "shift_factor" | "latents_mean" | "latents_std">>;

/** Scale and offset of channel c: normalised = (raw − offset)·scale. */
function channel(config: Scaling, c: number): { scale: number; offset: number } {
  const { scaling_factor, shift_factor, latents_mean: mean, latents_std: std } = config;
  if (mean && std) return { scale: scaling_factor / std[c], offset: mean[c] };
  return { scale: scaling_factor, offset: shift_factor ?? 0 };
}

function eachChannel(latents: FloatTensor, f: (v: number, c: number) => number): FloatTensor {
  const [, C, h, w] = latents.shape;
  return floats(
    latents.shape,
    latents.data.map((v, i) => f(v, Math.floor(i / (h * w)) % C)),
  );
}

/** Raw latents [B,C,h,w] as the UNet sees them. */
export function normalizeLatents(config: Scaling, latents: FloatTensor): FloatTensor {
  const channels = Array.from({ length: latents.shape[1] }, (_, c) => channel(config, c));
  return eachChannel(latents, (v, c) => (v - channels[c].offset) * channels[c].scale);
}

/** The inverse, before decoding. */
export function denormalizeLatents(config: Scaling, latents: FloatTensor): FloatTensor {
  const channels = Array.from({ length: latents.shape[1] }, (_, c) => channel(config, c));
  return eachChannel(latents, (v, c) => v / channels[c].scale + channels[c].offset);
}

/** Mean and deviation of each channel over batches of raw latents. */
export function latentStatistics(batches: readonly FloatTensor[]): {
  latents_mean: number[];
  latents_std: number[];
} {
  const C = batches[0].shape[1];
  const sums = Array.from({ length: C }, () => [0, 0, 0]);
  for (const { shape, data } of batches)
    for (let i = 0; i < data.length; i++) {
      const s = sums[Math.floor(i / (shape[2] * shape[3])) % C];
      s[0]++;
      s[1] += data[i];
      s[2] += data[i] ** 2;
    }
  return {
    latents_mean: sums.map(([n, a]) => a / n),
    latents_std: sums.map(([n, a, b]) => Math.sqrt(b / n - (a / n) ** 2)),
  };
}
