/** @file Contact sheets. */

import sharp from "sharp";

export interface SheetPicture {
  /** RGB, row by row. */
  data: Uint8Array;
  width: number;
  height: number;
  label?: string;
}

export interface SheetOptions {
  /** Pictures in a row. Default 8. */
  columns?: number;
  /** Whole factor of enlargement, nearest neighbour. Default 1. */
  scale?: number;
}

function escapeXml(text: string): string {
  return text.replace(/[<>&"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

/** Pictures of one size in a grid, with labels under them, as PNG. */
export async function contactSheet(
  pictures: readonly SheetPicture[],
  { columns = 8, scale = 1 }: SheetOptions = {},
): Promise<Buffer> {
  const [w, h] = [pictures[0].width * scale, pictures[0].height * scale];
  const font = Math.max(9, Math.round(w / 11));
  const strip = pictures.some((p) => p.label) ? Math.round(font * 1.6) : 0;
  const gap = 4;
  const cell = { width: w + gap, height: h + strip + gap };
  const rows = Math.ceil(pictures.length / columns);
  const tiles = await Promise.all(
    pictures.map(async ({ data, width, height, label = "" }, i) => {
      const [left, top] = [(i % columns) * cell.width + gap, Math.floor(i / columns) * cell.height + gap];
      const input = await sharp(data, { raw: { width, height, channels: 3 } })
        .resize(w, h, { kernel: "nearest" })
        .png()
        .toBuffer();
      const shown = label.length > 19 ? `${label.slice(0, 18)}…` : label;
      const text = `<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${strip}"><text x="${w / 2}" y="${font}" font-family="sans-serif" font-size="${font}" text-anchor="middle" fill="#222">${escapeXml(shown)}</text></svg>`;
      return [{ input, left, top }, ...(label ? [{ input: Buffer.from(text), left, top: top + h }] : [])];
    }),
  );
  const width = columns * cell.width + gap;
  return sharp({ create: { width, height: rows * cell.height + gap, channels: 3, background: "#fff" } })
    .composite(tiles.flat())
    .png()
    .toBuffer();
}
