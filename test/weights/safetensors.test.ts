/** @file Safetensors: what is written is read, what strangers wrote is refused in one sentence. */

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { DTYPES, type DType, Generator, type HostTensor, sizeOf, tensor } from "../../src/tensor/index.ts";
import { loadSafetensors, matchKeys, SafetensorsFile, saveSafetensors } from "../../src/weights/index.ts";

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
  path = join(folder, "w.safetensors");
});
afterEach(() => rmSync(folder, { recursive: true }));

/** A file with this header (an object, or text as it is) and this many bytes of data. */
function fileOf(header: unknown, dataBytes = 0, claimed?: bigint): Uint8Array {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const out = new Uint8Array(8 + text.length + dataBytes);
  new DataView(out.buffer).setBigUint64(0, claimed ?? BigInt(text.length), true);
  out.set(text, 8);
  return out;
}

/** What loading these bytes throws; undefined when they load. */
async function refusal(bytes: Uint8Array): Promise<Error | undefined> {
  writeFileSync(path, bytes);
  try {
    const { tensors } = await loadSafetensors(path);
    for (const t of Object.values(tensors)) expect(t.data).toHaveLength(sizeOf(t.shape));
    return undefined;
  } catch (error) {
    return error as Error;
  }
}

/** One line of readable length that names the file, and no accident of the parser. */
function expectSentence(error: Error | undefined): void {
  expect(error?.constructor).toBe(Error);
  expect(error?.message).toMatch(/^w\.safetensors: [^\p{C}\p{Zl}\p{Zp}]{10,400}$/u);
  expect(error?.message).not.toMatch(/undefined|NaN|\[object|is not a function|\.$/);
}

describe("round trip", () => {
  const dtypes = Object.keys(DTYPES) as DType[];

  test.each(dtypes)("%s", async (dtype) => {
    const { array, bytes } = DTYPES[dtype];
    const raw = Uint8Array.from({ length: 6 * bytes }, (_, i) => (dtype === "bool" ? i % 2 : 37 * i + 11));
    const t = tensor(dtype, [2, 3], new array(raw.buffer, 0, 6));
    const scalar = tensor(dtype, [], t.data.slice(4, 5));
    const empty = tensor(dtype, [0, 7], t.data.slice(0, 0));
    await saveSafetensors(path, { "a.weight": t, empty, scalar });
    const { tensors } = await loadSafetensors(path);
    expect({ ...tensors }).toEqual({ "a.weight": t, empty, scalar });
    expect(Object.keys(tensors)).toEqual(["a.weight", "empty", "scalar"]);
  });

  test("metadata, and a view into a larger buffer", async () => {
    const metadata = { format: "pt", note: 'é "quoted"\n', "": "empty key" };
    const view = new Float32Array([0, 1, 2, 3]).subarray(1, 3);
    await saveSafetensors(path, { x: tensor("float32", [2], view) }, metadata);
    const loaded = await loadSafetensors(path);
    expect(loaded.metadata).toEqual(metadata);
    expect(Array.from(loaded.tensors.x.data as Float32Array)).toEqual([1, 2]);
  });

  test("tensors called like members of Object", async () => {
    const names = ["__proto__", "constructor", "toString", "a b", "é", '"', "0"];
    const tensors: Record<string, HostTensor> = Object.create(null);
    for (const [i, name] of names.entries()) tensors[name] = tensor("uint8", [1], Uint8Array.of(i));
    await saveSafetensors(path, tensors);
    await using file = await SafetensorsFile.open(path);
    expect([...file.entries.keys()].sort()).toEqual([...names].sort());
    for (const [i, name] of names.entries()) expect((await file.read(name)).data[0]).toBe(i);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });

  test("no tensors at all", async () => {
    await saveSafetensors(path, {});
    expect({ ...(await loadSafetensors(path)).tensors }).toEqual({});
  });

  test("the data starts at a multiple of 64 bytes and follows the header's order", async () => {
    const [a, b] = [Float32Array.of(1, 2), Float32Array.of(3)];
    await saveSafetensors(path, { b: tensor("float32", [1], b), a: tensor("float32", [2], a) });
    const bytes = readFileSync(path);
    const start = 8 + Number(bytes.readBigUInt64LE(0));
    expect(start % 64).toBe(0);
    expect([0, 4, 8].map((o) => bytes.readFloatLE(start + o))).toEqual([3, 1, 2]);
    expect(bytes).toHaveLength(start + 12);
  });

  test("a header of odd length: tensors need not be aligned in the file", async () => {
    const bytes = fileOf('{"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8]} }', 8);
    new DataView(bytes.buffer).setFloat64(bytes.length - 8, Math.PI, true);
    expect((bytes.length - 8) % 8).not.toBe(0);
    expect(await refusal(bytes)).toBeUndefined();
    expect((await loadSafetensors(path)).tensors.x.data[0]).toBe(Math.PI);
  });

  test("a tensor that is not there is named", async () => {
    await saveSafetensors(path, {});
    await using file = await SafetensorsFile.open(path);
    await expect(file.read("gone")).rejects.toThrow("w.safetensors: no tensor is called gone");
  });

  test("data that does not fill its shape is not written", async () => {
    const wrong = { dtype: "float32", shape: [3], data: Float32Array.of(1, 2) } as const;
    await expect(saveSafetensors(path, { x: wrong })).rejects.toThrow("x");
    expect(readdirSync(folder)).toEqual([]);
  });
});

const x = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
const deep = `${"[".repeat(200_000)}${"]".repeat(200_000)}`;

/** Name, bytes, and what the sentence must say. */
const hostile: [string, Uint8Array, RegExp][] = [
  ["nothing", new Uint8Array(0), /not a safetensors file/],
  ["seven bytes", new Uint8Array(7), /not a safetensors file/],
  ["a web page", new TextEncoder().encode("<!DOCTYPE html><html></html>"), /a web page/],
  [
    "a zip archive, as PyTorch saves",
    new TextEncoder().encode("PK\u0003\u0004 archive/data.pkl"),
    /pickle, which can/,
  ],
  ["a bare pickle", Uint8Array.of(0x80, 2, 0x7d, 0x71, 0, 0x28, 0x58, 3, 0), /pickle, which can run code/],
  ["a GGUF file", new TextEncoder().encode("GGUF\u0003\0\0\0\0\0"), /GGUF file/],
  [
    "a pointer of Git LFS",
    new TextEncoder().encode("version https://git-lfs.example/spec"),
    /pointer of Git LFS/,
  ],
  ["a header longer than the file", fileOf({ x }, 8, 4000n), /truncated/],
  ["a header longer than allowed", fileOf({ x }, 8, 2n ** 40n), /at most 100000000/],
  ["a header length of 2**64 - 1", fileOf({ x }, 8, 2n ** 64n - 1n), /at most 100000000/],
  ["a header length of 0", fileOf("", 8), /not JSON/],
  ["half of the data", fileOf({ x }, 4), /truncated/],
  ["no data", fileOf({ x }), /truncated/],
  ["text", fileOf("hello"), /not JSON/],
  ["cut JSON", fileOf('{"x":{"dtype":"F32"'), /not JSON/],
  ["bytes that are not UTF-8", fileOf({ x }, 8).fill(0xff, 10, 11), /not JSON/],
  ["an array", fileOf([x], 8), /not an object/],
  ["null", fileOf("null"), /not an object/],
  ["a number", fileOf("3"), /not an object/],
  ["nested deeper than a stack", fileOf(deep), /not an object/],
  ["an entry that is a number", fileOf({ x: 3 }), /x has no dtype/],
  ["an entry that is null", fileOf({ x: null }), /x has no dtype/],
  ["an entry that is a list", fileOf({ x: ["F32", [2], [0, 8]] }), /x has no dtype/],
  ["an unknown dtype", fileOf({ x: { ...x, dtype: "F4" } }, 8), /"F4".*known are F64, F32/],
  ["dtype __proto__", fileOf({ x: { ...x, dtype: "__proto__" } }, 8), /known are/],
  ["dtype toString", fileOf({ x: { ...x, dtype: "toString" } }, 8), /known are/],
  ["a dtype nested deeper than a stack", fileOf(`{"x":{"dtype":${deep}}}`), /dtype.*known are/],
  ["a dtype of a megabyte", fileOf({ x: { ...x, dtype: "F".repeat(1e6) } }, 8), /dtype.*known are/],
  ["a shape nested deeper than a stack", fileOf(`{"x":{"dtype":"F32","shape":${deep}}}`), /shape/],
  [
    "offsets nested deeper than a stack",
    fileOf(`{"x":{"dtype":"F32","shape":[],"data_offsets":${deep}}}`),
    /offsets/,
  ],
  ["no shape", fileOf({ x: { dtype: "F32", data_offsets: [0, 8] } }, 8), /shape.*whole numbers/],
  ["a negative dimension", fileOf({ x: { ...x, shape: [-2] } }, 8), /shape.*whole numbers/],
  ["two negative dimensions", fileOf({ x: { ...x, shape: [-1, -2] } }, 8), /shape.*whole numbers/],
  ["half a dimension", fileOf({ x: { ...x, shape: [0.5, 4] } }, 8), /shape.*whole numbers/],
  ["a dimension that is text", fileOf({ x: { ...x, shape: ["2"] } }, 8), /shape.*whole numbers/],
  ["a dimension of 2**53", fileOf({ x: { ...x, shape: [2 ** 53] } }, 8), /shape.*whole numbers/],
  ["an infinite dimension", fileOf(`{"x":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}`, 8), /shape/],
  ["a product that overflows", fileOf({ x: { ...x, shape: Array(40).fill(2 ** 52) } }, 8), /shape/],
  [
    "a product that overflows times zero",
    fileOf({ x: { ...x, shape: [...Array(40).fill(2 ** 52), 0] } }, 8),
    /shape/,
  ],
  ["a shape larger than its bytes", fileOf({ x: { ...x, shape: [3] } }, 8), /needs 12 bytes.*give 8/],
  ["a shape smaller than its bytes", fileOf({ x: { ...x, shape: [1] } }, 8), /needs 4 bytes.*give 8/],
  ["a dtype larger than its bytes", fileOf({ x: { ...x, dtype: "I64" } }, 8), /needs 16 bytes.*give 8/],
  ["a shape of a million dimensions", fileOf({ x: { ...x, shape: Array(1e6).fill(1) } }, 8), /needs 4 bytes/],
  ["no offsets", fileOf({ x: { dtype: "F32", shape: [2] } }, 8), /two whole numbers/],
  ["one offset", fileOf({ x: { ...x, data_offsets: [0] } }, 8), /two whole numbers/],
  ["three offsets", fileOf({ x: { ...x, data_offsets: [0, 8, 8] } }, 8), /two whole numbers/],
  ["negative offsets", fileOf({ x: { ...x, data_offsets: [-8, 0] } }, 8), /two whole numbers/],
  ["offsets of 2**53", fileOf({ x: { ...x, data_offsets: [2 ** 53, 2 ** 53 + 8] } }, 8), /two whole numbers/],
  ["offsets below 2**53", fileOf({ x: { ...x, data_offsets: [2 ** 53 - 9, 2 ** 53 - 1] } }, 8), /truncated/],
  ["offsets in reverse", fileOf({ x: { ...x, data_offsets: [8, 0] } }, 8), /smaller first/],
  ["offsets behind the end", fileOf({ x: { ...x, data_offsets: [8, 16] } }, 8), /truncated/],
  ["overlapping tensors", fileOf({ x, y: { ...x, data_offsets: [4, 12] } }, 12), /y overlaps/],
  ["the same bytes twice", fileOf({ x, y: x }, 8), /overlaps/],
  ["a gap at the start", fileOf({ x: { ...x, data_offsets: [4, 12] } }, 12), /x leaves a gap/],
  ["a gap between", fileOf({ x, y: { ...x, data_offsets: [12, 20] } }, 20), /y leaves a gap/],
  [
    "an empty tensor in the middle of another",
    fileOf({ x, y: { ...x, shape: [0], data_offsets: [4, 4] } }, 8),
    /overlaps|gap/,
  ],
  ["bytes behind the last tensor", fileOf({ x }, 12), /4 bytes after the last tensor/],
  ["a tensor called __proto__ with a bad entry", fileOf('{"__proto__":{"dtype":"F1"}}'), /__proto__ .*dtype/],
  [
    "an entry without members of its own",
    fileOf('{"x":{"__proto__":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}', 8),
    /dtype/,
  ],
  ["a tensor twice, alike", fileOf(`{"x":${JSON.stringify(x)},"x":${JSON.stringify(x)}}`, 8), /twice/],
  [
    "a tensor twice, written differently",
    fileOf(`{"x":${JSON.stringify(x)},"\\u0078":${JSON.stringify(x)}}`, 8),
    /twice/,
  ],
  [
    "a tensor twice, at two places",
    fileOf(`{"x":${JSON.stringify(x)},"x":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}`, 16),
    /twice/,
  ],
  ["two dtypes", fileOf('{"x":{"dtype":"I32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8), /twice/],
  ["a name with line breaks and colours", fileOf({ "a\n\u001b[31mb": { ...x, dtype: "?" } }, 8), /dtype/],
  ["a name of a megabyte", fileOf({ ["x".repeat(1e6)]: { ...x, dtype: "?" } }, 8), /dtype/],
  ["metadata that is text", fileOf({ __metadata__: "pt" }), /__metadata__/],
  ["metadata that is a list", fileOf({ __metadata__: ["pt"] }), /__metadata__/],
  ["metadata that is null", fileOf({ __metadata__: null }), /__metadata__/],
  ["metadata with a number", fileOf({ __metadata__: { step: 3 } }), /metadata step/],
  ["metadata with a name of a megabyte", fileOf({ __metadata__: { ["x".repeat(1e6)]: 3 } }), /metadata/],
];

describe("hostile files are refused in one sentence", () => {
  test.each(hostile)("%s", async (_, bytes, says) => {
    const error = await refusal(bytes);
    expectSentence(error);
    expect(error?.message).toMatch(says);
  });

  test("metadata cannot reach prototypes", async () => {
    expect(await refusal(fileOf('{"__metadata__":{"__proto__":"x","constructor":"y"}}'))).toBeUndefined();
    const { metadata } = await loadSafetensors(path);
    expect(Object.keys(metadata)).toContain("constructor");
    expect(Object.getPrototypeOf({})).toBe(Object.prototype);
  });

  test("keys that only look alike are not duplicates", async () => {
    const y = { ...x, data_offsets: [8, 16] };
    const names = { 'a":{"a': x, "a:b{": y };
    expect(
      await refusal(fileOf({ __metadata__: { 'a":': "\\", dtype: '"' }, ...names }, 16)),
    ).toBeUndefined();
  });

  test("a folder and a missing file", async () => {
    mkdirSync(path);
    await expect(loadSafetensors(path)).rejects.toThrow(/w\.safetensors: not a file/);
    await expect(loadSafetensors(join(folder, "gone"))).rejects.toThrow(/gone: no such file$/);
  });
});

/** The file that the fuzz loops damage. */
async function valid(): Promise<Uint8Array> {
  await saveSafetensors(
    path,
    {
      "conv.weight": tensor("float32", [2, 3], new Float32Array(6).fill(1.5)),
      "conv.bias": tensor("bfloat16", [3], new Uint16Array(3)),
      ids: tensor("int64", [1, 2], new BigInt64Array(2)),
    },
    { format: "pt", step: "17" },
  );
  return new Uint8Array(readFileSync(path));
}

describe("fuzz: a damaged file loads or throws a sentence", () => {
  test("2000 random byte mutations", async () => {
    const original = await valid();
    const header = 8 + Number(new DataView(original.buffer).getBigUint64(0, true));
    const g = new Generator(1);
    let refused = 0;
    for (let i = 0; i < 2000; i++) {
      let bytes = original.slice();
      for (let n = 1 + g.integer(4); n > 0; n--) {
        const at = g.integer(g.integer(8) === 0 ? bytes.length : Math.min(header, bytes.length));
        const kind = g.integer(8);
        if (kind < 5)
          bytes[at] = kind < 2 ? g.integer(256) : '{}[]",:0123456789-e\\ '.charCodeAt(g.integer(21));
        else if (kind === 5) bytes[at] ^= 1 << g.integer(8);
        else if (kind === 6) bytes = bytes.slice(0, at + 1);
        else bytes = Uint8Array.of(...bytes.subarray(0, at), g.integer(256), ...bytes.subarray(at));
      }
      const error = await refusal(bytes);
      if (error) {
        refused++;
        expectSentence(error);
      }
    }
    expect(refused).toBeGreaterThan(1500);
    expect(refused).toBeLessThan(2000);
  });

  test("500 headers with a value replaced", async () => {
    const original = await valid();
    const length = Number(new DataView(original.buffer).getBigUint64(0, true));
    const text = new TextDecoder().decode(original.subarray(8, 8 + length));
    const values = [...text.matchAll(/"[^"]*"|\d+|\[[^\]]*\]|\{[^{}]*\}/g)];
    const nasty = [
      "-1",
      "-0",
      "1e3",
      "1.5",
      "9007199254740992",
      "1e400",
      "null",
      "true",
      "[]",
      "{}",
      '""',
      "[[]]",
    ];
    nasty.push(
      '"__proto__"',
      '"F32"',
      '"\\ud800"',
      '"\\u0000"',
      "[0,0]",
      "[12,12]",
      '{"dtype":"F32"}',
      '"dtype"',
    );
    const g = new Generator(2);
    for (let i = 0; i < 500; i++) {
      const found = values[g.integer(values.length)];
      const replaced = text.slice(0, found.index) + nasty[g.integer(nasty.length)];
      const bytes = fileOf(replaced + text.slice(found.index + found[0].length), 46);
      bytes.set(original.subarray(8 + length), bytes.length - 46);
      const error = await refusal(bytes);
      if (error) expectSentence(error);
    }
  });
});

describe("matchKeys", () => {
  const shape = (...shape: number[]) => ({ shape });

  test("is silent when all fits", () => {
    matchKeys("vae", { a: [2, 3], b: [] }, { b: shape(), a: shape(2, 3) });
  });

  test("lists missing, left-over and misshapen keys", () => {
    const run = () =>
      matchKeys(
        "unet",
        { a: [1], b: [2, 3], c: [4] },
        { c: shape(4), b: shape(3, 2), d: shape(5), e: shape() },
      );
    expect(run).toThrow(
      "unet does not fit: 1 missing: a; 2 left over: d, e; 1 of another shape: b (needs [2,3], has [3,2])",
    );
  });

  test("counts all and names eight", () => {
    const many = Object.fromEntries(Array.from({ length: 20 }, (_, i) => [`k${i}`, [1]]));
    expect(() => matchKeys("clip", many, {})).toThrow(
      "clip does not fit: 20 missing: k0, k1, k2, k3, k4, k5, k6, k7, …",
    );
  });

  test("names of Object's members are not found by accident", () => {
    expect(() => matchKeys("m", { constructor: [1], toString: [1] }, {})).toThrow(
      "2 missing: constructor, toString",
    );
    expect(() => matchKeys("m", {}, { constructor: shape() })).toThrow("1 left over: constructor");
  });
});

describe("a failed write", () => {
  const old = { x: tensor("float32", [1], Float32Array.of(7)) };

  /** The old file is whole and alone. */
  async function expectOld(): Promise<void> {
    expect(readdirSync(folder)).toEqual(["w.safetensors"]);
    expect({ ...(await loadSafetensors(path)).tensors }).toEqual(old);
  }

  test("half-way through leaves the old file", async () => {
    await saveSafetensors(path, old);
    const probe = await open(path);
    const prototype: FileHandle = Object.getPrototypeOf(probe);
    const passOn = prototype.writeFile;
    await probe.close();
    let parts = 0;
    const writeFile = vi.spyOn(prototype, "writeFile").mockImplementation(function (
      this: FileHandle,
      data: unknown,
    ) {
      if (++parts === 4) expect(readdirSync(folder)).toHaveLength(2);
      return parts === 4
        ? Promise.reject(new Error("EIO: the cable is out"))
        : passOn.call(this, data as string);
    });
    try {
      const two = { x: old.x, y: tensor("float32", [2], Float32Array.of(1, 2)) };
      await expect(saveSafetensors(path, two)).rejects.toThrow("the cable is out");
    } finally {
      writeFile.mockRestore();
    }
    expect(parts).toBe(4); // length, header, x, and y fails
    await expectOld();
  });

  test("to a folder leaves no temporary file", async () => {
    mkdirSync(path);
    await expect(saveSafetensors(path, old)).rejects.toThrow(/EISDIR|directory/);
    expect(readdirSync(folder)).toEqual(["w.safetensors"]);
    expect(readdirSync(path)).toEqual([]);
  });

  test.skipIf(!existsSync("/dev/full"))("on a full disk says so and leaves the old file", async () => {
    mkdirSync(path);
    const failed = await saveSafetensors(path, old).catch((error: Error) => error.message);
    const [, stem, n] = /(\S+-)(\d+)\.tmp/.exec(`${failed}`.replaceAll("'", "")) ?? [];
    rmSync(path, { recursive: true });
    await saveSafetensors(path, old);
    symlinkSync("/dev/full", `${stem}${Number(n) + 2}.tmp`); // where the next write goes
    await expect(saveSafetensors(path, { x: tensor("float32", [1], Float32Array.of(8)) })).rejects.toThrow(
      `${path}: the disk is full; nothing was written`,
    );
    await expectOld();
  });

  test("does not mix with another to the same path", async () => {
    const fill = (size: number) => ({ x: tensor("float32", [size], new Float32Array(size).fill(size)) });
    const sizes = Array.from({ length: 12 }, (_, i) => 50_000 + 10_000 * ((i * 5) % 12));
    await Promise.all(sizes.map((size) => saveSafetensors(path, fill(size))));
    const { x } = (await loadSafetensors(path)).tensors;
    expect(sizes).toContain(x.shape[0]);
    expect(new Set(x.data as Float32Array)).toEqual(new Set(x.shape));
    expect(readdirSync(folder)).toEqual(["w.safetensors"]);
  });
});
