import { crc32, deflateSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { addPngText, encodePng, isPng, readPng } from "../../src/platform/index.ts";

const picture = { width: 3, height: 2, data: Uint8Array.from({ length: 18 }, (_, i) => i * 10) };
const plain = await encodePng(picture);

/** The file with one more chunk, made by node:zlib's checksum rather than ours, after the header. */
function withChunk(type: string, ...data: (string | Uint8Array)[]): Uint8Array {
  const body = Buffer.concat(
    [type, ...data].map((d) => (typeof d === "string" ? Buffer.from(d, "latin1") : d)),
  );
  const [length, crc] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(body.length - 4);
  crc.writeUInt32BE(crc32(body));
  return Buffer.concat([plain.subarray(0, 33), length, body, crc, plain.subarray(33)]);
}

function damaged(change: (bytes: Uint8Array) => void): Uint8Array {
  const bytes = withChunk("tEXt", "parameters\0a red apple").slice();
  change(bytes);
  return bytes;
}

describe("text chunks", () => {
  test.each([
    ["latin-1", "ein roter Apfel, größer\nSteps: 4", "tEXt"],
    ["beyond latin-1", "りんご 🍎\nSteps: 4", "iTXt"],
    ["empty", "", "tEXt"],
  ])("%s text survives", async (_, text, type) => {
    const file = await encodePng(picture, [{ keyword: "parameters", text }]);
    expect(Buffer.from(file.subarray(37, 41)).toString()).toBe(type);
    expect(await readPng(file)).toEqual({ width: 3, height: 2, texts: [{ keyword: "parameters", text }] });
  });

  test("pixels stay readable by sharp", async () => {
    const { default: sharp } = await import("sharp");
    const file = await encodePng(picture, [{ keyword: "parameters", text: "りんご" }]);
    expect(new Uint8Array(await sharp(file).raw().toBuffer())).toEqual(picture.data);
  });

  test("compressed chunks of other programs are read", async () => {
    const z = withChunk("zTXt", "Comment\0\0", deflateSync(Buffer.from("zipped")));
    const i = withChunk("iTXt", "parameters\0\x01\0en\0Parameter\0", deflateSync(Buffer.from("gezippt: ä")));
    expect((await readPng(z)).texts).toEqual([{ keyword: "Comment", text: "zipped" }]);
    expect((await readPng(i)).texts).toEqual([{ keyword: "parameters", text: "gezippt: ä" }]);
  });

  test.each([
    ["a\0b", "", /keyword/],
    ["", "x", /keyword/],
    ["k".repeat(80), "x", /keyword/],
    ["parameters", "a\0b", /NUL/],
  ])("refuses what the format cannot hold: %j %j", (keyword, text, message) => {
    expect(() => addPngText(plain, [{ keyword, text }])).toThrow(message);
  });
});

describe("hostile files", () => {
  test.each<[string, Uint8Array, RegExp]>([
    ["no PNG", new TextEncoder().encode("GIF89a"), /not a PNG/],
    ["nothing", new Uint8Array(), /not a PNG/],
    ["cut after the signature", plain.slice(0, 8), /truncated/],
    ["cut in a chunk", plain.slice(0, 40), /truncated/],
    ["cut before IEND", plain.slice(0, -12), /without IEND/],
    ["length beyond the file", damaged((b) => b.fill(0xff, 33, 37)), /truncated/],
    ["changed text", damaged((b) => (b[55] ^= 1)), /checksum of tEXt at byte 33/],
    ["no chunk name", damaged((b) => (b[37] = 0)), /no chunk name/],
    ["second header", withChunk("IHDR", "x".repeat(13)), /first chunk/],
    ["keyword without end", withChunk("tEXt", "parameters"), /malformed/],
    ["empty keyword", withChunk("tEXt", "\0text"), /malformed/],
    ["unknown compression", withChunk("zTXt", "Comment\0\x07xx"), /malformed/],
    ["iTXt without fields", withChunk("iTXt", "parameters\0\0\0en"), /malformed/],
    ["garbage for zlib", withChunk("zTXt", "Comment\0\0garbage"), /cannot be decompressed/],
    [
      "decompression bomb",
      withChunk("zTXt", "Comment\0\0", deflateSync(Buffer.alloc(40 << 20))),
      /more than/,
    ],
    ["17 MiB of text", withChunk("tEXt", "Comment\0", new Uint8Array(17 << 20).fill(65)), /more than/],
  ])("%s", async (_, file, message) => {
    await expect(readPng(file)).rejects.toThrow(message);
  });

  test("isPng looks at the signature only", () => {
    expect(isPng(plain)).toBe(true);
    expect(isPng(plain.subarray(0, 7))).toBe(false);
  });
});
