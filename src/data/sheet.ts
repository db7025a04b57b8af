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

/** At most two lines of words; what does not fit ends in an ellipsis. */
function wrap(text: string, most: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (longer.length <= most || lines.at(-1) === "") lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  const cut = (line: string, more: boolean) =>
    more || line.length > most ? `${line.slice(0, most - 1).trimEnd()}…` : line;
  return lines.slice(0, 2).map((line, i) => cut(line, i === 1 && lines.length > 2));
}

/** Pictures of one size in a grid, with labels under them, as PNG. */
export async function contactSheet(
  pictures: readonly SheetPicture[],
  { columns = 8, scale = 1 }: SheetOptions = {},
): Promise<Buffer> {
  const [w, h] = [pictures[0].width * scale, pictures[0].height * scale];
  const font = Math.max(9, Math.round(w / 11));
  const most = Math.floor(w / (font * 0.56)); // letters in a line
  const line = Math.round(font * 1.15);
  const labels = pictures.map((p) => (p.label ? wrap(p.label, most) : []));
  const lines = Math.max(...labels.map((l) => l.length));
  const strip = lines > 0 ? Math.round(line * (lines + 0.4)) : 0;
  const gap = 4;
  const cell = { width: w + gap, height: h + strip + gap };
  const rows = Math.ceil(pictures.length / columns);
  const style = `font-family="sans-serif" font-size="${font}" text-anchor="middle" fill="#222"`;
  const tiles = await Promise.all(
    pictures.map(async ({ data, width, height }, i) => {
      const [left, top] = [(i % columns) * cell.width + gap, Math.floor(i / columns) * cell.height + gap];
      const input = await sharp(data, { raw: { width, height, channels: 3 } })
        .resize(w, h, { kernel: "nearest" })
        .png()
        .toBuffer();
      const text = labels[i].map(
        (words, k) => `<text x="${w / 2}" y="${font + k * line}" ${style}>${escapeXml(words)}</text>`,
      );
      const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${strip}">${text.join("")}</svg>`;
      return [
        { input, left, top },
        ...(text.length > 0 ? [{ input: Buffer.from(svg), left, top: top + h }] : []),
      ];
    }),
  );
  const size = { width: columns * cell.width + gap, height: rows * cell.height + gap };
  return sharp({ create: { ...size, channels: 3, background: "#fff" } })
    .composite(tiles.flat())
    .png()
    .toBuffer();
}
