/**
 * @file Decoding large pictures tile by tile, as AutoencoderKL.tiled_decode of diffusers: the tiles overlap by a quarter
 * and blend there. C channels, h w latent, H W pixels.
 */

import { type FloatTensor, floats } from "../tensor/index.ts";
import type { Autoencoder } from "./autoencoder.ts";

/** Whether pictures are decoded by tiles: where they are larger than one, or only where memory becomes short. */
export const VAE_TILINGS = ["auto", "on", "off"] as const;
export type VaeTiling = (typeof VAE_TILINGS)[number];

/** Pixels that are decoded at once with "auto": 1024², and a quarter more for other shapes. */
const AT_ONCE = 1.25 * 2 ** 20;

export interface Tiles {
  /** Pixels per latent position. */
  factor: number;
  /** Latent positions on a side. */
  side: number;
  /** From one tile to the next, in latent positions. */
  step: number;
}

/** Tiles of the size that the VAE was trained at; undefined where latents [.,.,h,w] are decoded at once. */
export function tilesFor(
  { factor, sampleSize = 1024 }: Pick<Autoencoder, "factor" | "sampleSize">,
  [h, w]: readonly [number, number],
  tiling: VaeTiling,
): Tiles | undefined {
  const side = Math.max(1, Math.floor(sampleSize / factor));
  if (tiling === "off" || Math.max(h, w) <= side) return undefined;
  if (tiling === "auto" && h * w * factor ** 2 <= AT_ONCE) return undefined;
  return { factor, side, step: Math.max(1, Math.floor(side * 0.75)) };
}

interface Plane {
  shape: readonly number[];
  data: Float32Array;
}

/**
 * Latents [1,C,h,w] → picture [1,3,H,W]. Besides the picture, one row of tiles is in memory.
 * @param decode of a tile: [1,C,a,b] → [1,3,a·factor,b·factor]
 */
export async function tiledDecode(
  decode: (tile: FloatTensor) => Promise<FloatTensor>,
  latents: FloatTensor,
  { factor, side, step }: Tiles,
): Promise<FloatTensor> {
  const [, , h, w] = latents.shape;
  const overlap = (side - step) * factor;
  const picture = floats([1, 3, h * factor, w * factor]);
  let above: Plane[] = [];
  for (let y = 0; y < h; y += step) {
    const row: Plane[] = [];
    for (let x = 0; x < w; x += step) {
      const j = row.length;
      const tile = await decode(cut(latents, y, x, side));
      if (y > 0) blend(above[j], tile, overlap, 2);
      if (x > 0) blend(row[j - 1], tile, overlap, 3);
      row.push(tile);
      paste(tile, picture, [y * factor, x * factor], step * factor);
    }
    above = row;
  }
  return picture;
}

/** The square at (y, x), or what of it lies inside. */
function cut({ shape, data }: FloatTensor, y: number, x: number, side: number): FloatTensor {
  const [, C, h, w] = shape;
  const [a, b] = [Math.min(side, h - y), Math.min(side, w - x)];
  const out = floats([1, C, a, b]);
  for (let c = 0; c < C; c++)
    for (let i = 0; i < a; i++) {
      const from = (c * h + y + i) * w + x;
      out.data.set(data.subarray(from, from + b), (c * a + i) * b);
    }
  return out;
}

/** The first lines of `tile` along an axis fade in over the last ones of the tile before it. */
function blend(before: Plane, tile: Plane, extent: number, axis: 2 | 3): void {
  const n = Math.min(before.shape[axis], tile.shape[axis], extent);
  const [, C, H, W] = tile.shape;
  const [, , H0, W0] = before.shape;
  const lines = axis === 2 ? W : H;
  for (let c = 0; c < C; c++)
    for (let k = 0; k < n; k++)
      for (let line = 0; line < lines; line++) {
        const to = axis === 2 ? (c * H + k) * W + line : (c * H + line) * W + k;
        const from = axis === 2 ? (c * H0 + H0 - n + k) * W0 + line : (c * H0 + line) * W0 + W0 - n + k;
        tile.data[to] = before.data[from] * (1 - k / n) + tile.data[to] * (k / n);
      }
}

/** Copies the first `limit` rows and columns of a tile to (Y, X), as far as they are inside. */
function paste(tile: Plane, picture: Plane, [Y, X]: readonly [number, number], limit: number): void {
  const [, C, a, b] = tile.shape;
  const [, , H, W] = picture.shape;
  const columns = Math.min(limit, b, W - X);
  for (let c = 0; c < C; c++)
    for (let i = 0; i < Math.min(limit, a, H - Y); i++) {
      const from = (c * a + i) * b;
      picture.data.set(tile.data.subarray(from, from + columns), (c * H + Y + i) * W + X);
    }
}
