/** @file Latents as small pictures without the VAE: a linear map from their channels to colours. C channels, h w latent. */

import { type Picture, readPlanes } from "../platform/index.ts";
import { type FloatTensor, floats, Generator } from "../tensor/index.ts";
import type { Autoencoder } from "./autoencoder.ts";

/** Red, green and blue in [−1, 1] for one unit of each channel, and last what is added. */
export type LatentRgb = readonly (readonly number[])[];

/** Of the latents of SDXL, as ComfyUI has them in its latent_formats. */
const SDXL: LatentRgb = [
  [0.3651, 0.4232, 0.4341],
  [-0.2533, -0.0042, 0.1068],
  [0.1076, 0.1111, -0.0362],
  [-0.3165, -0.2492, -0.2188],
  [0.1084, -0.0175, -0.0011],
];

/** Random latents from which the map is fitted: count, side, side of the squares of one colour, deviation. */
const FIT = { count: 16, side: 16, cell: 4, deviation: 0.7 };

/** The known map of SDXL's own latents; for others one that is fitted to what `decode` makes of random ones. */
export async function latentRgb(
  { latentChannels: C, factor, scaling }: Pick<Autoencoder, "latentChannels" | "factor" | "scaling">,
  decode: (latents: FloatTensor) => Promise<FloatTensor>,
): Promise<LatentRgb> {
  const { scaling_factor, latents_mean, shift_factor } = scaling;
  if (C === 4 && factor === 8 && scaling_factor === 0.13025 && !latents_mean && !shift_factor) return SDXL;
  const { count, side, cell, deviation } = FIT;
  const n = side / cell;
  const { data: colours } = new Generator(0).randn([count, C, n, n]);
  const latents = floats(
    [count, C, side, side],
    Float32Array.from({ length: count * C * side * side }, (_, i) => {
      const [x, y, bc] = [i % side, Math.floor(i / side) % side, Math.floor(i / side ** 2)];
      return deviation * colours[(bc * n + Math.floor(y / cell)) * n + Math.floor(x / cell)];
    }),
  );
  const { Matrix, solve } = await import("ml-matrix"); // most models do not need it
  const inputs = channelsLast(latents).map((channels) => [...channels, 1]);
  const targets = channelsLast(shrunk(await decode(latents), factor));
  return solve(new Matrix(inputs), new Matrix(targets)).to2DArray(); // least squares
}

/** The first of latents [B,C,h,w] as a picture of w×h pixels. */
export function latentPicture(latents: FloatTensor, map: LatentRgb): Picture {
  const [, C, height, width] = latents.shape;
  const n = height * width;
  const planes = Float32Array.from({ length: 3 * n }, (_, at) => {
    const [colour, i] = [Math.floor(at / n), at % n];
    let value = map[C][colour];
    for (let c = 0; c < C; c++) value += map[c][colour] * latents.data[c * n + i];
    return value;
  });
  return { width, height, data: readPlanes(planes) };
}

/** [B,C,h,w] as B·h·w rows of C. */
function channelsLast({ shape, data }: FloatTensor): number[][] {
  const [B, C, h, w] = shape;
  const n = h * w;
  return Array.from({ length: B * n }, (_, i) =>
    Array.from({ length: C }, (_, c) => data[(Math.floor(i / n) * C + c) * n + (i % n)]),
  );
}

/** Means over squares of pixels. */
function shrunk({ shape, data }: FloatTensor, factor: number): FloatTensor {
  const [B, C, H, W] = shape;
  const [h, w] = [H / factor, W / factor];
  const out = floats([B, C, h, w]);
  for (let i = 0; i < data.length; i++) {
    const [x, y, bc] = [i % W, Math.floor(i / W) % H, Math.floor(i / (H * W))];
    const to = (bc * h + Math.floor(y / factor)) * w + Math.floor(x / factor);
    out.data[to] += Math.min(1, Math.max(-1, data[i])) / factor ** 2;
  }
  return out;
}
