/**
 * @file A picture as terminal output: kitty's graphics protocol, iTerm2's inline images, sixel, or coloured
 * half-block characters. The encoders are pure: picture in, string out.
 */

import type { Picture } from "../platform/index.ts";

export const DISPLAYS = ["kitty", "iterm2", "sixel", "blocks", "none"] as const;
export type Display = (typeof DISPLAYS)[number];

/** What a terminal is known by without asking it. */
export interface Terminal {
  isTTY: boolean;
  /** Bits of colour, as `WriteStream.getColorDepth` gives: 24, 8, 4 or 1. */
  colorDepth: number;
  /** Width in character cells. */
  columns: number;
  env: Readonly<Record<string, string | undefined>>;
}

const ESC = "\x1b";

/** The best way this terminal is known to show pictures; the environment decides, nothing is queried. */
export function detectDisplay({ isTTY, colorDepth, env }: Terminal): Display {
  if (!isTTY) return "none";
  const { TERM = "", TERM_PROGRAM: program = "" } = env;
  const multiplexed = env.TMUX || env.STY || /^(screen|tmux)/.test(TERM); // these swallow graphics
  if (!multiplexed) {
    if (env.KITTY_WINDOW_ID || /kitty|ghostty/.test(TERM) || program === "ghostty") return "kitty";
    if (["iTerm.app", "WezTerm", "mintty"].includes(program) || env.LC_TERMINAL === "iTerm2") return "iterm2";
    if (/^(foot|mlterm|yaft|contour)|sixel/.test(TERM) || Number(env.KONSOLE_VERSION) >= 220400)
      return "sixel";
  }
  return colorDepth >= 8 ? "blocks" : "none";
}

/**
 * The escape sequences that show a picture, ending in a line break; empty for "none".
 * @param png the same picture as a file: kitty and iTerm2 take it as it is
 */
export function displayPicture(
  display: Display,
  picture: Picture,
  png: Uint8Array,
  { columns, colorDepth }: Pick<Terminal, "columns" | "colorDepth">,
): string {
  // small pictures are enlarged to a third of a usual terminal, large ones shown in most of it
  const cells = Math.min(Math.max(32, Math.round(picture.width / 8)), 64, columns);
  if (display === "kitty") return kitty(png, cells, Math.max(1, Math.round(rowsFor(picture, cells))));
  if (display === "iterm2") return iterm2(png, cells);
  if (display === "sixel") return sixel(resize(picture, cells * 8, "up"));
  if (display === "blocks") return blocks(resize(picture, Math.min(64, columns)), colorDepth);
  return "";
}

/** Height in rows of a picture `cells` wide; a cell is about twice as high as wide. */
function rowsFor({ width, height }: Picture, cells: number): number {
  return (cells * height) / width / 2;
}

/** PNG in chunks of 4096 base64 characters; q=2 keeps the terminal from answering. */
function kitty(png: Uint8Array, columns: number, rows: number): string {
  const parts =
    Buffer.from(png)
      .toString("base64")
      .match(/.{1,4096}/g) ?? [];
  return `${parts
    .map((part, i) => {
      const more = `m=${i + 1 < parts.length ? 1 : 0}`;
      return `${ESC}_G${i === 0 ? `a=T,f=100,q=2,c=${columns},r=${rows},${more}` : more};${part}${ESC}\\`;
    })
    .join("")}\n`;
}

function iterm2(png: Uint8Array, columns: number): string {
  const data = Buffer.from(png).toString("base64");
  return `${ESC}]1337;File=inline=1;size=${png.length};width=${columns};preserveAspectRatio=1:${data}\x07\n`;
}

/** Two pixels a character: upper half in the text colour, lower half in the background colour. */
function blocks(picture: Picture, colorDepth: number): string {
  const { width, height } = picture;
  const color = colorDepth >= 24 ? trueColor : cubeColor;
  let out = "";
  for (let y = 0; y < height; y += 2) {
    let last = "";
    for (let x = 0; x < width; x++) {
      const upper = `${ESC}[38;${color(picture, x, y)}m`;
      const lower = y + 1 < height ? `${ESC}[48;${color(picture, x, y + 1)}m` : "";
      if (upper + lower !== last) out += upper + lower;
      last = upper + lower;
      out += "▀";
    }
    out += `${ESC}[0m\n`;
  }
  return out;
}

function trueColor({ data, width }: Picture, x: number, y: number): string {
  const at = (y * width + x) * 3;
  return `2;${data[at]};${data[at + 1]};${data[at + 2]}`;
}

/** The 6×6×6 cube of the 256-colour palette. */
function cubeColor({ data, width }: Picture, x: number, y: number): string {
  const at = (y * width + x) * 3;
  const [r, g, b] = [0, 1, 2].map((c) => Math.round(data[at + c] / 51));
  return `5;${16 + 36 * r + 6 * g + b}`;
}

/** 4×4 Bayer matrix, in steps of 1/16 centred on zero: hides the bands of a small palette. */
const BAYER = [0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5].map((v) => (v + 0.5) / 16 - 0.5);

/** DEC sixel with a 6×6×6 colour cube and ordered dithering; bands of six rows, run-length coded. */
function sixel({ width, height, data }: Picture): string {
  const color = (x: number, y: number): number => {
    const dither = BAYER[(y & 3) * 4 + (x & 3)];
    let index = 0;
    for (let c = 0; c < 3; c++) {
      const level = Math.round(data[(y * width + x) * 3 + c] / 51 + dither);
      index = index * 6 + Math.min(5, Math.max(0, level));
    }
    return index;
  };
  let out = `${ESC}P0;1q"1;1;${width};${height}`;
  for (let i = 0; i < 216; i++)
    out += `#${i};2;${Math.floor(i / 36) * 20};${(Math.floor(i / 6) % 6) * 20};${(i % 6) * 20}`;
  for (let top = 0; top < height; top += 6) {
    const rows = new Map<number, Uint8Array>(); // colour → six-pixel columns
    for (let y = top; y < Math.min(top + 6, height); y++)
      for (let x = 0; x < width; x++) {
        const index = color(x, y);
        let row = rows.get(index);
        if (!row) {
          row = new Uint8Array(width);
          rows.set(index, row);
        }
        row[x] |= 1 << (y - top);
      }
    out += [...rows].map(([index, row]) => `#${index}${runs(row)}`).join("$");
    out += "-";
  }
  return `${out}${ESC}\\\n`;
}

function runs(row: Uint8Array): string {
  let out = "";
  for (let x = 0, end = 0; x < row.length; x = end) {
    while (end < row.length && row[end] === row[x]) end++;
    const character = String.fromCharCode(63 + row[x]);
    out += end - x > 3 ? `!${end - x}${character}` : character.repeat(end - x);
  }
  return out;
}

/** Averages down to `width` pixels, or with "up" repeats pixels a whole number of times. */
function resize(picture: Picture, width: number, enlarge?: "up"): Picture {
  if (picture.width <= width) {
    const times = enlarge ? Math.floor(width / picture.width) : 1;
    return sample(picture, picture.width * times, picture.height * times);
  }
  return sample(picture, width, Math.max(1, Math.round((picture.height * width) / picture.width)));
}

/** Each new pixel is the mean of the old pixels it covers, at least one. */
function sample(from: Picture, width: number, height: number): Picture {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    const [y0, y1] = span(y, height, from.height);
    for (let x = 0; x < width; x++) {
      const [x0, x1] = span(x, width, from.width);
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let v = y0; v < y1; v++)
          for (let u = x0; u < x1; u++) sum += from.data[(v * from.width + u) * 3 + c];
        data[(y * width + x) * 3 + c] = Math.round(sum / ((y1 - y0) * (x1 - x0)));
      }
    }
  }
  return { width, height, data };
}

function span(i: number, count: number, from: number): [number, number] {
  const start = Math.floor((i * from) / count);
  return [start, Math.max(start + 1, Math.floor(((i + 1) * from) / count))];
}
