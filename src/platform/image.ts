/** @file Pictures as files. */

import { addPngText, type PngText } from "./png.ts";

export interface Picture {
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
  /** RGB, 8 bits each, row by row: `width * height * 3` bytes. */
  readonly data: Uint8Array;
}

/** PNG file of a picture, with text chunks. Lossless. */
export async function encodePng(picture: Picture, texts: readonly PngText[] = []): Promise<Uint8Array> {
  return addPngText(await (await pixels(picture)).png({ compressionLevel: 9 }).toBuffer(), texts);
}

/** JPEG or WebP file of a picture; quality from 1 to 100. */
export async function encodeLossy(
  picture: Picture,
  format: "jpeg" | "webp",
  quality: number,
): Promise<Uint8Array> {
  return (await pixels(picture))[format]({ quality }).toBuffer();
}

async function pixels({ width, height, data }: Picture) {
  if (data.length !== width * height * 3)
    throw new Error(
      `picture of ${width}×${height} needs ${width * height * 3} bytes of RGB, got ${data.length}`,
    );
  const { default: sharp } = await import("sharp"); // loads a native library: only when a picture is written
  return sharp(data, { raw: { width, height, channels: 3 } });
}

/** Writes RGB bytes as three planes of floats in [−1, 1], at an offset into `out`. */
export function writePlanes(rgb: Uint8Array, out: Float32Array, offset = 0): void {
  const n = rgb.length / 3;
  for (let i = 0; i < n; i++)
    for (let c = 0; c < 3; c++) out[offset + c * n + i] = rgb[3 * i + c] / 127.5 - 1;
}

/** Three planes of floats around [−1, 1] as RGB bytes. */
export function readPlanes(planes: Float32Array): Uint8Array {
  const n = planes.length / 3;
  const rgb = new Uint8Array(planes.length);
  for (let i = 0; i < n; i++)
    for (let c = 0; c < 3; c++)
      rgb[3 * i + c] = Math.min(255, Math.max(0, Math.round((planes[c * n + i] + 1) * 127.5)));
  return rgb;
}
