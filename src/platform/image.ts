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
  const { width, height, data } = picture;
  if (data.length !== width * height * 3)
    throw new Error(
      `picture of ${width}×${height} needs ${width * height * 3} bytes of RGB, got ${data.length}`,
    );
  const { default: sharp } = await import("sharp"); // loads a native library: only when a picture is written
  const raw = { width, height, channels: 3 as const };
  return addPngText(await sharp(data, { raw }).png({ compressionLevel: 9 }).toBuffer(), texts);
}
