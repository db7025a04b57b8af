/** @file Contact sheets side by side: one row a configuration, one column a prompt, the same seed in a column. */

import sharp from "sharp";

export interface SheetRow {
  label: string;
  /** RGB. */
  pictures: readonly Uint8Array[];
}

const SCALE = 1.5;
const GAP = 4;
const [LABELS, CAPTION] = [210, 30];

export async function sideBySide(rows: readonly SheetRow[], prompts: readonly string[]): Promise<Uint8Array> {
  const side = Math.sqrt(rows[0].pictures[0].length / 3);
  const cell = Math.round(side * SCALE);
  const width = LABELS + prompts.length * (cell + GAP);
  const height = CAPTION + rows.length * (cell + GAP);
  const text = (x: number, y: number, size: number, words: string) =>
    `<text x="${x}" y="${y}" font-size="${size}" font-family="sans-serif" fill="#222">${escapeXml(words)}</text>`;
  const most = Math.floor(cell / 5);
  const labels = [
    ...prompts.map((prompt, i) => {
      const short = prompt.length > most ? `${prompt.slice(0, most - 1)}…` : prompt;
      return text(LABELS + i * (cell + GAP), 20, 9, short);
    }),
    ...rows.map(({ label }, i) => text(4, CAPTION + i * (cell + GAP) + cell / 2, 12, label)),
  ];
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">${labels.join("")}</svg>`;
  const tiles = await Promise.all(
    rows.flatMap(({ pictures }, r) =>
      pictures.map(async (data, i) => ({
        input: await sharp(data, { raw: { width: side, height: side, channels: 3 } })
          .resize(cell, cell, { kernel: "nearest" })
          .png()
          .toBuffer(),
        left: LABELS + i * (cell + GAP),
        top: CAPTION + r * (cell + GAP),
      })),
    ),
  );
  return sharp({ create: { width, height, channels: 3, background: "#fff" } })
    .composite([{ input: Buffer.from(svg), left: 0, top: 0 }, ...tiles])
    .png()
    .toBuffer();
}

function escapeXml(text: string): string {
  return text.replace(/[<>&"']/g, (c) => `&#${c.charCodeAt(0)};`);
}
