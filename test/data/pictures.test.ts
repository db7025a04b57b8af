import { mkdirSync, rmSync, symlinkSync } from "node:fs";
import sharp from "sharp";
import { create, Header } from "tar";
import { describe, expect, test } from "vitest";
import { type LoadPicturesOptions, loadPictures } from "../../src/data/index.ts";
import { at, noise, plain, put } from "./temporary.ts";

const load = (options: Partial<LoadPicturesOptions> = {}) =>
  loadPictures({ path: at("set"), size: 64, step: 16, ...options });
const names = async (options?: Partial<LoadPicturesOptions>) =>
  (await load(options)).pictures.map((p) => `${p.file}: ${p.caption}`);

describe("pairs", () => {
  test("in folders, every format, in the order of names", async () => {
    put("set/b.png", await plain("png"));
    put("set/b.txt", "  a blue\n square \n");
    put("set/sub/deep/a.JPG", await plain("jpeg"));
    put("set/sub/deep/a.txt", "\ufeffsecond");
    put("set/a.webp", await plain("webp"));
    put("set/a.txt", "third");
    put("set/Z.jpeg", await plain("jpeg"));
    put("set/Z.txt", "fourth");
    put("set/.hidden/c.png", await plain("png"));
    put("set/.hidden/c.txt", "no");
    put("set/notes.md", "no picture");
    expect(await names()).toEqual([
      "Z.jpeg: fourth",
      "a.webp: third",
      "b.png: a blue square",
      "sub/deep/a.JPG: second",
    ]);
  });

  test("what cannot be used is skipped and named", async () => {
    for (const n of ["good", "cut", "text", "svg", "blank", "binary", "empty"]) put(`set/${n}.txt`, `a ${n}`);
    put("set/good.png", await plain("png"));
    const whole = await noise("jpeg");
    put("set/cut.jpg", whole.subarray(0, whole.length * 0.8));
    put("set/text.png", "hello");
    put("set/svg.png", await plain("svg"));
    put("set/empty.png", "");
    put("set/lone.png", await plain("png"));
    put("set/blank.png", await plain("png"));
    put("set/blank.txt", " \n");
    put("set/binary.png", await plain("png"));
    put("set/binary.txt", Buffer.from([0xff, 0xfe, 0xff]));
    const { report, length } = await load();
    expect(length).toBe(1);
    expect(report.used).toBe(1);
    expect(Object.fromEntries(report.skipped.map((s) => [s.file, s.reason]))).toEqual({
      "cut.jpg": expect.stringContaining("premature end"),
      "text.png": "not a PNG, JPEG or WebP file",
      "svg.png": "not a PNG, JPEG or WebP file",
      "empty.png": "not a PNG, JPEG or WebP file",
      "lone.png": "no caption: lone.txt is missing",
      "blank.png": "no caption",
      "binary.png": expect.stringContaining("utf-8"),
    });
  });

  test.each(["png", "jpeg", "webp"] as const)("damage beyond the header of a %s is found", async (format) => {
    const whole = await noise(format);
    put(`set/a.${format}`, whole.subarray(0, whole.length - 200));
    put("set/a.txt", "cut");
    await expect(load()).rejects.toThrow(/no usable picture with a caption \(1 skipped, the first is a\./);
  });

  test("pixels are bounded before they are decoded", async () => {
    put("set/small.png", await plain("png", [50, 50]));
    put("set/small.txt", "small");
    put("set/bomb.png", await plain("png", [3000, 3000]));
    put("set/bomb.txt", "nine million");
    put("set/thread.png", await plain("png", [1, 30_000]));
    put("set/thread.txt", "covers a bucket at 64 times its size");
    const { report } = await load({ maxPixels: 1_000_000 });
    expect(report).toEqual({
      used: 1,
      skipped: [
        { file: "bomb.png", reason: expect.stringContaining("pixel limit") },
        { file: "thread.png", reason: "1×30000 is too long and thin" },
      ],
    });
    expect((await load()).report.used).toBe(3);
  });

  test("links that leave the folder are not followed", async () => {
    put("outside/secret.png", await plain("png"));
    put("outside/secret.txt", "secret");
    put("set/a.png", await plain("png"));
    put("set/a.txt", "mine");
    symlinkSync(at("outside/secret.png"), at("set/b.png"));
    put("set/b.txt", "caption");
    put("set/c.png", await plain("png"));
    symlinkSync(at("outside/secret.txt"), at("set/c.txt"));
    symlinkSync(at("outside"), at("set/linked"));
    symlinkSync(at("set"), at("set/loop"));
    symlinkSync(at("set/a.png"), at("set/d.png"));
    put("set/d.txt", "a link inside");
    symlinkSync(at("nowhere"), at("set/e.png"));
    const { pictures, report } = await load();
    expect(pictures.map((p) => p.file)).toEqual(["a.png", "d.png"]);
    expect(report.skipped).toEqual([
      { file: "b.png", reason: "b.png is a link that leaves the dataset" },
      { file: "c.png", reason: "c.txt is a link that leaves the dataset" },
      { file: "e.png", reason: "e.png does not exist" },
    ]);
  });

  test("nothing usable is one sentence", async () => {
    mkdirSync(at("set"));
    await expect(load()).rejects.toThrow(
      `${at("set")}: no pictures; expected name.png + name.txt, metadata.jsonl or .tar shards`,
    );
    await expect(load({ convention: "pairs" })).rejects.toThrow(
      `${at("set")}: no usable picture with a caption (it is empty)`,
    );
    await expect(load({ path: at("nowhere") })).rejects.toThrow("ENOENT");
    put("set/a.png", await plain("png"));
    await expect(load()).rejects.toThrow("(1 skipped, the first is a.png: no caption: a.txt is missing)");
  });
});

describe("metadata.jsonl", () => {
  test("rows in order, with any of the three caption fields, relative to the file", async () => {
    put("set/train/x.png", await plain("png"));
    put("set/train/images/y.jpg", await plain("jpeg"));
    put("set/x.txt", "not this");
    const lines = [
      { file_name: "images/y.jpg", text: "first" },
      { file_name: "x.png", caption: "second", other: 1 },
      { file_name: "./x.png", prompt: "third" },
    ];
    put("set/train/metadata.jsonl", `${lines.map((l) => JSON.stringify(l)).join("\r\n")}\n\n`);
    const expected = ["train/images/y.jpg: first", "train/x.png: second", "train/x.png: third"];
    expect(await names()).toEqual(expected);
    expect(await names({ path: at("set/train/metadata.jsonl") })).toEqual(
      expected.map((e) => e.replace("train/", "")),
    );
  });

  test("refuses names that leave the folder and rows that say nothing", async () => {
    put("secret.png", await plain("png"));
    put("set/a.png", await plain("png"));
    symlinkSync(at("secret.png"), at("set/link.png"));
    const rows = [
      { file_name: "../secret.png", text: "up" },
      { file_name: at("secret.png"), text: "absolute" },
      { file_name: "link.png", text: "link" },
      { file_name: "a.png\0.txt", text: "nul" },
      { file_name: "b.png", text: "absent" },
      { file_name: "a.png" },
      { text: "no name" },
      null,
      { file_name: "a.png", text: "good" },
    ];
    put("set/metadata.jsonl", [...rows.map((r) => JSON.stringify(r)), "{broken"].join("\n"));
    const { report, pictures } = await load();
    expect(pictures.map((p) => p.caption)).toEqual(["good"]);
    expect(report.skipped.map(({ file, reason }) => `${file} ${reason}`)).toEqual([
      "metadata.jsonl:1 ../secret.png lies outside the dataset",
      `metadata.jsonl:2 ${at("secret.png")} lies outside the dataset`,
      "metadata.jsonl:3 link.png is a link that leaves the dataset",
      "metadata.jsonl:4 a.png\0.txt does not exist",
      "metadata.jsonl:5 b.png does not exist",
      "metadata.jsonl:6 no caption",
      "metadata.jsonl:7 no file_name",
      "metadata.jsonl:8 no file_name",
      expect.stringMatching(/^metadata.jsonl:10 .*JSON/),
    ]);
  });

  test("goes before pairs, unless pairs are asked for", async () => {
    put("set/a.png", await plain("png"));
    put("set/a.txt", "pair");
    put("set/metadata.jsonl", JSON.stringify({ file_name: "a.png", text: "row" }));
    expect(await names()).toEqual(["a.png: row"]);
    expect(await names({ convention: "pairs" })).toEqual(["a.png: pair"]);
  });
});

describe("webdataset", () => {
  const long = `${"long-name-".repeat(15)}/0003`;
  async function shard(): Promise<string> {
    put("raw/0001.png", await plain("png", [64, 64], "#ff0000"));
    put("raw/0001.txt", "red");
    put("raw/0002.jpg", await plain("jpeg"));
    put("raw/0002.json", JSON.stringify({ caption: "blue", width: 1 }));
    put(`raw/${long}.webp`, await plain("webp"));
    put(`raw/${long}.txt`, "long");
    put("raw/0004.seg.png", await plain("png"));
    put("raw/0004.txt", "a mask is no picture");
    put("raw/0005.png", await plain("png"));
    put("raw/0006.png", "broken");
    put("raw/0006.txt", "broken");
    mkdirSync(at("set"), { recursive: true });
    await create({ file: at("set/b.tar"), cwd: at("raw") }, ["."]);
    return at("set/b.tar");
  }

  test("samples share a key; long names, json and txt", async () => {
    await shard();
    put("more/x.png", await plain("png"));
    put("more/x.txt", "first shard");
    await create({ file: at("set/a.tar"), cwd: at("more") }, ["x.png", "x.txt"]);
    const set = await load();
    expect(set.pictures.map((p) => `${p.file}: ${p.caption}`).sort()).toEqual([
      "a.tar/x.png: first shard",
      "b.tar/./0001.png: red",
      "b.tar/./0002.jpg: blue",
      `b.tar/./${long}.webp: long`,
    ]);
    expect(set.report.skipped.map(({ file, reason }) => `${file} ${reason}`).sort()).toEqual([
      "b.tar/./0005.png no caption: its key has no .txt and no .json",
      "b.tar/./0006.png not a PNG, JPEG or WebP file",
    ]);
    const red = await set.pixels([set.pictures.findIndex((p) => p.caption === "red")]);
    const area = red.data.length / 3;
    expect([0, area, 2 * area].map((i) => red.data[i])).toEqual([1, -1, -1]);
  });

  test("one shard may be given", async () => {
    expect(await names({ path: await shard() })).toHaveLength(3);
  });

  test("a truncated shard gives what it has and is named", async () => {
    put("raw/1.png", await plain("png"));
    put("raw/1.txt", "one");
    put("raw/2.txt", "two");
    put("raw/2.png", await noise("png"));
    await create({ file: at("whole.tar"), cwd: at("raw") }, ["1.png", "1.txt", "2.txt", "2.png"]);
    const { readFileSync } = await import("node:fs");
    put("set/cut.tar", readFileSync(at("whole.tar")).subarray(0, 5000));
    const { report } = await load();
    expect(report).toEqual({
      used: 1,
      skipped: [{ file: "cut.tar", reason: expect.stringMatching(/^truncated: 2.png needs \d+ bytes/) }],
    });
  });

  test("hostile archives: no file appears, no size is believed", async () => {
    const entry = (path: string, type: "File" | "SymbolicLink" | "ExtendedHeader", size: number) => {
      const block = Buffer.alloc(512);
      new Header({
        path,
        type,
        size,
        mode: 0o644,
        linkpath: type === "SymbolicLink" ? "/etc/passwd" : "",
      }).encode(block, 0);
      return block;
    };
    const padded = (b: Buffer) => Buffer.concat([b, Buffer.alloc((512 - (b.length % 512)) % 512)]);
    const picture = await plain("png");
    put(
      "set/escape.tar",
      Buffer.concat([
        entry("../../up.png", "File", picture.length),
        padded(picture),
        entry("../../up.txt", "File", 2),
        padded(Buffer.from("up")),
        entry("link.png", "SymbolicLink", 0),
        entry("link.txt", "File", 4),
        padded(Buffer.from("link")),
      ]),
    );
    put("set/huge.tar", entry("pax", "ExtendedHeader", 2 ** 32));
    put("set/large.tar", entry("a.png", "File", Number.MAX_SAFE_INTEGER));
    put("set/noise.tar", await noise("webp"));
    put("set/pax.tar", Buffer.concat([entry("pax", "ExtendedHeader", 2 ** 21), Buffer.alloc(2 ** 21)]));
    put("set/small.tar", "x");
    const { report, pictures } = await load();
    expect(pictures.map((p) => p.caption)).toEqual(["up"]); // a label, read in place
    expect(report.skipped.map((s) => `${s.file} ${s.reason.split(":")[0]}`)).toEqual([
      "huge.tar truncated",
      "large.tar truncated",
      "noise.tar damaged at byte 0, or no tar archive (compressed ones are not read)",
      "pax.tar 2097152 bytes are too many, at most 1048576 are read",
      "small.tar the file ends early",
    ]);
    await expect(sharp(at("up.png")).metadata()).rejects.toThrow();
  });
});

describe("pictures", () => {
  test("in buckets, with SDXL's micro-conditioning", async () => {
    put("set/square.png", await plain("png", [100, 100]));
    put("set/wide.png", await plain("png", [400, 100]));
    put("set/tall.png", await plain("png", [90, 150]));
    for (const n of ["square", "wide", "tall"]) put(`set/${n}.txt`, n);
    const set = await load();
    expect(set.buckets).toEqual([
      { width: 48, height: 80, members: [1] },
      { width: 64, height: 64, members: [0] },
      { width: 80, height: 48, members: [2] },
    ]);
    expect(set.timeIds(0)).toEqual([100, 100, 0, 0, 64, 64]);
    expect(set.timeIds(1)).toEqual([150, 90, 0, 0, 80, 48]);
    expect(set.timeIds(2)).toEqual([100, 400, 0, 56, 48, 80]);
    expect(set.caption(2, () => 0)).toBe("wide");
    expect((await set.pixels([2])).shape).toEqual([1, 3, 48, 80]);
  });

  test("are cropped at the centre, as planes in [−1,1]", async () => {
    const image = sharp({ create: { width: 256, height: 64, channels: 3, background: "#000000" } });
    const white = await plain("png", [64, 64], "#ffffff");
    put(
      "set/a.png",
      await image
        .composite([{ input: white, left: 96, top: 0 }])
        .png()
        .toBuffer(),
    );
    put("set/a.txt", "white in the middle");
    const { pixels } = await load({ maxAspect: 1 });
    const { shape, data } = await pixels([0]);
    expect(shape).toEqual([1, 3, 64, 64]);
    expect(data.every((v) => v === 1)).toBe(true);
    put("set/a.png", await plain("png", [64, 64], "#ff0000"));
    const red = await (await load()).pixels([0, 0]);
    expect([0, 1, 2, 3, 4, 5].map((plane) => red.data[plane * 64 * 64])).toEqual([1, -1, -1, 1, -1, -1]);
  });

  test("upright, on white, in three channels", async () => {
    const turned = await sharp(await plain("jpeg", [80, 40]))
      .withMetadata({ orientation: 6 })
      .jpeg()
      .toBuffer();
    put("set/a.jpg", turned);
    const clear = { create: { width: 64, height: 64, channels: 4 as const, background: "#00000000" } };
    put("set/b.png", await sharp(clear).png().toBuffer());
    put(
      "set/c.png",
      await sharp(await plain("png"))
        .toColourspace("b-w")
        .png()
        .toBuffer(),
    );
    put(
      "set/d.jpg",
      await sharp(await plain("png"))
        .toColourspace("cmyk")
        .jpeg()
        .toBuffer(),
    );
    put(
      "set/e.png",
      await sharp(await plain("png"))
        .toColourspace("rgb16")
        .png()
        .toBuffer(),
    );
    for (const n of "abcde") put(`set/${n}.txt`, n);
    const set = await load();
    expect(set.pictures[0].originalSize).toEqual([80, 40]);
    for (let i = 0; i < 5; i++) {
      const { shape, data } = await set.pixels([i]);
      expect(shape.slice(0, 2)).toEqual([1, 3]);
      if (i === 1) expect(data.every((v) => v === 1)).toBe(true);
    }
  });

  test("a batch is of one bucket, and a picture that went away is named", async () => {
    put("set/a.png", await plain("png"));
    put("set/a.txt", "a");
    put("set/b.png", await plain("png", [120, 60]));
    put("set/b.txt", "b");
    const progress: string[] = [];
    const set = await load({ onProgress: (done, total) => progress.push(`${done}/${total}`) });
    expect(progress).toEqual(["2/2"]);
    await expect(set.pixels([0, 1])).rejects.toThrow("b.png is of another bucket than its batch");
    rmSync(at("set/a.png"));
    await expect(set.pixels([0])).rejects.toThrow(/^a.png: ENOENT.*it could be read before/);
  });
});
