import { describe, expect, test } from "vitest";
import { detectDisplay, displayPicture } from "../../src/cli/terminal.ts";

describe("detectDisplay", () => {
  test.each([
    ["kitty", { KITTY_WINDOW_ID: "1" }],
    ["kitty", { TERM: "xterm-kitty" }],
    ["kitty", { TERM: "xterm-ghostty" }],
    ["iterm2", { TERM_PROGRAM: "iTerm.app" }],
    ["iterm2", { TERM_PROGRAM: "WezTerm" }],
    ["sixel", { TERM: "foot" }],
    ["sixel", { TERM: "xterm-256color", KONSOLE_VERSION: "230800" }],
    ["blocks", { TERM: "xterm-256color", KONSOLE_VERSION: "210400" }],
    ["blocks", { TERM: "xterm-256color" }],
    ["blocks", { TERM: "tmux-256color", TMUX: "/tmp/tmux", KITTY_WINDOW_ID: "1" }],
  ])("%s for %j", (display, env) =>
    expect(detectDisplay({ isTTY: true, colorDepth: 24, columns: 80, env })).toBe(display),
  );

  test("nothing without colour or without a terminal", () => {
    expect(detectDisplay({ isTTY: true, colorDepth: 1, columns: 80, env: {} })).toBe("none");
    const env = { KITTY_WINDOW_ID: "1" };
    expect(detectDisplay({ isTTY: false, colorDepth: 24, columns: 80, env })).toBe("none");
  });
});

/** Red over blue, one pixel wide. */
const flag = { width: 1, height: 2, data: Uint8Array.of(255, 0, 0, 0, 0, 255) };
const file = new Uint8Array(5000).fill(7);
const wide = { columns: 80, colorDepth: 24 };

describe("displayPicture", () => {
  test("blocks: one character for two pixels", () => {
    expect(displayPicture("blocks", flag, file, wide)).toBe("\x1b[38;2;255;0;0m\x1b[48;2;0;0;255m▀\x1b[0m\n");
    expect(displayPicture("blocks", flag, file, { columns: 80, colorDepth: 8 })).toBe(
      "\x1b[38;5;196m\x1b[48;5;21m▀\x1b[0m\n",
    );
  });

  test("blocks: equal neighbours share one colour, an odd last row has no lower half", () => {
    const grey = { width: 2, height: 1, data: new Uint8Array(6).fill(9) };
    expect(displayPicture("blocks", grey, file, wide)).toBe("\x1b[38;2;9;9;9m▀▀\x1b[0m\n");
  });

  test("blocks: larger pictures are averaged down to the width of the terminal", () => {
    const stripes = { width: 4, height: 4, data: new Uint8Array(48) };
    for (let i = 0; i < 48; i++) stripes.data[i] = Math.floor(i / 3) % 2 ? 200 : 100;
    expect(displayPicture("blocks", stripes, file, { columns: 2, colorDepth: 24 })).toBe(
      "\x1b[38;2;150;150;150m\x1b[48;2;150;150;150m▀▀\x1b[0m\n",
    );
  });

  test("kitty: the file in chunks, size in cells on the first", () => {
    const out = visible(displayPicture("kitty", { ...flag, width: 64, height: 64 }, file, wide));
    const chunks = [...out.matchAll(/␛_G([^;]*);([^␛]*)␛\\/g)];
    expect(chunks.map((c) => c[1])).toEqual(["a=T,f=100,q=2,c=32,r=16,m=1", "m=0"]);
    expect(Buffer.from(chunks.map((c) => c[2]).join(""), "base64")).toEqual(Buffer.from(file));
  });

  test("iterm2: the file in one piece", () => {
    const out = visible(displayPicture("iterm2", flag, file, wide));
    const [, header, data] = /^␛\]1337;File=([^:]*):(.*)␇\n$/.exec(out) ?? [];
    expect(header).toBe("inline=1;size=5000;width=32;preserveAspectRatio=1");
    expect(Buffer.from(data, "base64")).toEqual(Buffer.from(file));
  });

  test("sixel: decodes to the picture it was made of", () => {
    const four = { width: 2, height: 2, data: Uint8Array.of(255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255) };
    const pixels = decodeSixel(displayPicture("sixel", four, file, { columns: 1, colorDepth: 24 }));
    expect(pixels).toHaveLength(8);
    expect(pixels[0]).toEqual([..."rrrrgggg"]);
    expect(pixels[7]).toEqual([..."bbbbwwww"]);
  });

  test("none: nothing", () => expect(displayPicture("none", flag, file, wide)).toBe(""));
});

/** Control characters as pictures of themselves. */
function visible(text: string): string {
  return text.replaceAll("\x1b", "␛").replaceAll("\x07", "␇");
}

/** Rows of colour letters, from a sixel sequence that uses pure colours. */
function decodeSixel(text: string): string[][] {
  const names: Record<string, string> = {
    "100;0;0": "r",
    "0;100;0": "g",
    "0;0;100": "b",
    "100;100;100": "w",
  };
  const palette = new Map<string, string>();
  const rows: string[][] = [];
  const [, width, height, body] = /^␛P0;1q"1;1;(\d+);(\d+)(.*)␛\\\n$/.exec(visible(text)) ?? [];
  let [x, top, color] = [0, 0, "?"];
  for (const token of body.matchAll(/#(\d+);2;([\d;]+)|#(\d+)|!(\d+)([?-~])|([?-~])|(\$)|(-)/g)) {
    const [, defined, rgb, chosen, times, repeated, single, back, next] = token;
    if (defined) palette.set(defined, names[rgb] ?? "?");
    else if (chosen) color = palette.get(chosen) ?? "?";
    else if (back) x = 0;
    else if (next) [x, top] = [0, top + 6];
    else
      for (let n = Number(times ?? 1); n > 0; n--, x++)
        for (let bit = 0; bit < 6; bit++)
          if (((repeated ?? single).charCodeAt(0) - 63) & (1 << bit)) {
            rows[top + bit] ??= [];
            rows[top + bit][x] = color;
          }
  }
  expect([rows.length, rows[0].length]).toEqual([Number(height), Number(width)]);
  return rows;
}
