/** @file ONNX models: names and types survive, sizes may be open, and weights are read where they lie. */

import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import {
  addDim,
  constant,
  floorDivDim,
  graph,
  input,
  mulDim,
  parameter,
  symbol,
  type Value,
} from "../../src/graph/index.ts";
import { type ExternalTensor, emitOnnx } from "../../src/onnx/index.ts";
import {
  attention,
  concat,
  conv,
  gather,
  groupNormalization,
  project,
  resizeNearest,
  silu,
} from "../../src/ops/index.ts";
import { platform } from "../../src/platform/index.ts";
import { compile } from "../../src/runtime/index.ts";
import {
  castTensor,
  type DType,
  floats,
  Generator,
  type HostTensor,
  ints,
  sizeOf,
  tensor,
  toFloat32,
} from "../../src/tensor/index.ts";
import { SafetensorsFile, saveSafetensors } from "../../src/weights/index.ts";

let folder: string;
let cwd: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
  cwd = process.cwd();
});
afterEach(() => {
  process.chdir(cwd);
  rmSync(folder, { recursive: true });
});

/** Numbers that differ from each other, exact in 16 bits. */
function numbered(...shape: number[]): HostTensor {
  return floats(
    shape,
    Array.from({ length: sizeOf(shape) }, (_, i) => ((i * 7) % 33) / 16 - 1),
  );
}

function values(t: HostTensor): number[] {
  return Array.from(t.data, Number);
}

const leaf = (name: string, ...shape: number[]) => parameter(name, shape, { kind: "constant", value: 0 });

/** Outputs on the CPU; feeds by name. */
async function run(
  outputs: Record<string, Value>,
  feeds: Record<string, HostTensor>,
  weights?: ReadonlyMap<string, HostTensor | ExternalTensor>,
): Promise<Record<string, HostTensor>> {
  await using program = await compile(graph(outputs), { threads: 1, weights });
  return await program.run(feeds);
}

describe("external data in a safetensors file", () => {
  const x = input("x", "float32", [2, 64]);
  const y = project(x, leaf("big.weight", 300, 64), leaf("bias", 300));
  const tensors = {
    first: numbered(5),
    "big.weight": numbered(300, 64),
    bias: numbered(300),
  };

  /** Where the tensors of `file` lie, as seen from `location`. */
  async function places(file: string, location: string): Promise<Map<string, ExternalTensor>> {
    await using opened = await SafetensorsFile.open(file);
    return new Map([...opened.entries].map(([name, e]) => [name, { ...e, location }]));
  }

  async function expected(of: Readonly<Record<string, HostTensor>> = tensors): Promise<number[]> {
    const { y: result } = await run({ y }, { x: numbered(2, 64) }, new Map(Object.entries(of)));
    return values(result);
  }

  test("relative to the working directory, when the model is passed as bytes", async () => {
    mkdirSync(join(folder, "model"));
    await saveSafetensors(join(folder, "model/w.safetensors"), tensors);
    const weights = await places(join(folder, "model/w.safetensors"), "model/w.safetensors");
    const want = await expected();
    process.chdir(folder);
    const got = await run({ y }, { x: numbered(2, 64) }, weights);
    expect(values(got.y)).toEqual(want);
    // The model has no copy of them: without the file there is nothing to run.
    expect(emitOnnx(graph({ y }), { weights }).length).toBeLessThan(1000);
    rmSync(join(folder, "model"), { recursive: true });
    await expect(run({ y }, { x: numbered(2, 64) }, weights)).rejects.toThrow("w.safetensors");
  });

  test("next to a model that is a file", async () => {
    const file = join(folder, "w.safetensors");
    await saveSafetensors(file, tensors);
    const weights = await places(file, "w.safetensors");
    writeFileSync(join(folder, "model.onnx"), emitOnnx(graph({ y }), { weights }));
    const { InferenceSession, Tensor } = platform();
    const session = await InferenceSession.create(join(folder, "model.onnx"), { logSeverityLevel: 3 });
    const { y: got } = await session.run({
      x: new Tensor("float32", numbered(2, 64).data as Float32Array, [2, 64]),
    });
    expect(Array.from(got.data as Float32Array)).toEqual(await expected());
    await session.release();
  });

  test.each(["float16", "bfloat16", "float64"] as const)(
    "stored as %s, computed in float32",
    async (dtype) => {
      const stored = Object.fromEntries(Object.entries(tensors).map(([k, t]) => [k, castTensor(t, dtype)]));
      await saveSafetensors(join(folder, "w.safetensors"), stored);
      const weights = await places(join(folder, "w.safetensors"), "w.safetensors");
      const want = await expected(stored);
      process.chdir(folder);
      const got = await run({ y }, { x: numbered(2, 64) }, weights);
      expect(got.y.dtype).toBe("float32");
      expect(values(got.y)).toEqual(want);
      expect(want).toEqual(await expected());
    },
  );

  test.each(["float8_e4m3fn", "float8_e5m2"] as const)("stored as %s: every value of it", async (dtype) => {
    const bits = Uint8Array.from({ length: 256 }, (_, i) => i);
    const eights = { [dtype]: tensor(dtype, [256], bits) };
    await saveSafetensors(join(folder, "w.safetensors"), eights);
    const weights = await places(join(folder, "w.safetensors"), "w.safetensors");
    process.chdir(folder);
    const { y } = await run({ y: leaf(dtype, 256).mul(1) }, {}, weights);
    expect(values(y)).toEqual(values(toFloat32(eights[dtype])));
    expect(values(y)[1]).toBe(dtype === "float8_e5m2" ? 2 ** -16 : 2 ** -9);
    expect(Math.max(...values(y).filter(Number.isFinite))).toBe(dtype === "float8_e5m2" ? 57344 : 448);
  });

  test("at any position: other writers do not align", async () => {
    const file = join(folder, "w.safetensors");
    await saveSafetensors(file, tensors);
    const bytes = readFileSync(file);
    const header = 8 + Number(bytes.readBigUInt64LE(0));
    const odd = Buffer.concat([bytes.subarray(0, header), Buffer.from(" "), bytes.subarray(header)]);
    odd.writeBigUInt64LE(BigInt(header - 8 + 1));
    writeFileSync(file, odd);
    const weights = await places(file, "w.safetensors");
    expect(weights.get("big.weight")!.offset % 4).toBe(1);
    const want = await expected();
    process.chdir(folder);
    const got = await run({ y }, { x: numbered(2, 64) }, weights);
    expect(values(got.y)).toEqual(want);
  });

  test("beyond the end of the file is refused", async () => {
    const file = join(folder, "w.safetensors");
    await saveSafetensors(file, tensors);
    const weights = await places(file, "short.safetensors");
    copyFileSync(file, join(folder, "short.safetensors"));
    writeFileSync(join(folder, "short.safetensors"), readFileSync(file).subarray(0, -4));
    process.chdir(folder);
    await expect(run({ y }, { x: numbered(2, 64) }, weights)).rejects.toThrow();
  });
});

describe("open sizes", () => {
  const [B, H, W] = ["B", "H", "W"].map(symbol);

  /** The network at several sizes in one session, against the network built for each size. */
  async function expectSame(
    build: (x: Value) => Value,
    shape: (b: number, h: number, w: number) => number[],
    sizes: [number, number, number][],
  ): Promise<void> {
    const open = shape(2, 3, 5).map((d) => ({ 2: B, 3: H, 5: W })[d] ?? d);
    const weight = numbered(8, 4, 3, 3);
    const options = { threads: 1, weights: new Map([["w", weight]]) };
    await using program = await compile(graph({ y: build(input("x", "float32", open)) }), options);
    for (const [b, h, w] of sizes) {
      const x = numbered(...shape(b, h, w));
      const y = build(input("x", "float32", x.shape));
      const want = (await run({ y }, { x }, options.weights)).y;
      const got = (await program.run({ x })).y;
      expect(got.shape).toEqual(y.shape);
      expect(got.shape).toEqual(want.shape);
      for (const [i, v] of values(got).entries()) expect(v).toBeCloseTo(Number(want.data[i]), 5);
    }
  }

  test("batch", async () => {
    const build = (x: Value) =>
      x
        .reshape([x.shape[0], 4, 2])
        .softmax()
        .sum([2])
        .add(x.slice(1, 0, 4));
    await expectSame(build, (b) => [b, 8], [
      [1, 1, 1],
      [3, 1, 1],
      [7, 1, 1],
    ]);
  });

  test("batch, height and width through a picture network", async () => {
    const build = (x: Value) => {
      const w = leaf("w", 8, 4, 3, 3);
      const h = conv(x, w, undefined, { strides: [2, 2], pads: [1, 1, 1, 1] }); // [B,8,⌊(H+1)/2⌋,⌊(W+1)/2⌋]
      const normed = silu(groupNormalization(h, constant(numbered(8)), constant(numbered(8)), { groups: 2 }));
      const [b, c, hh, ww] = normed.shape;
      const rows = normed.transpose([0, 2, 3, 1]).reshape([b, mulDim(hh, ww), c]);
      const mixed = attention(rows, rows, rows, { heads: 2 }).reshape([b, hh, ww, c]).transpose([0, 3, 1, 2]);
      const up = resizeNearest(mixed, [x.shape[2], x.shape[3]]);
      return concat([up, x], 1).slice(2, 1, -1);
    };
    await expectSame(build, (b, h, w) => [b, 4, h, w], [
      [1, 4, 4],
      [2, 5, 8],
      [3, 9, 7],
    ]);
  });

  test("sums, products and floors of sizes", async () => {
    const build = (x: Value) => {
      const [b, c, h, w] = x.shape;
      const area = mulDim(h, w);
      const one = x.slice(2, 0, 1).slice(3, 0, 1).slice(0, 0, 1); // [1,4,1,1]
      const sizes = [addDim(h, addDim(w, 1)), floorDivDim(addDim(area, 3), 2), addDim(mulDim(2, b), -1)];
      return concat(
        sizes.map((d) => one.reshape([4, 1]).expand([c, d])),
        1,
      );
    };
    await expectSame(build, (b, h, w) => [b, 4, h, w], [
      [1, 2, 3],
      [4, 5, 6],
    ]);
  });

  test("a size is read from an input, wherever in the graph it comes", async () => {
    const x = input("x", "float32", [B, 3]);
    // Depth first, the expansion is written before anything has touched x.
    const y = constant(numbered(1, 3)).expand([B, 3]).add(x.mul(2));
    const feeds = { x: numbered(4, 3) };
    const { y: got } = await run({ y }, feeds);
    expect(values(got)).toEqual(values(feeds.x).map((v, i) => 2 * v + Number(numbered(1, 3).data[i % 3])));
  });

  test("a size that no input has is named", () => {
    const y = constant(numbered(1, 3))
      .expand([symbol("K"), 3])
      .sum([0]);
    const sum = y.add(input("x", "float32", [3]));
    expect(() => emitOnnx(graph({ sum }))).toThrow("no input of the graph has the dimension K");
  });

  test("what does not fit the open shape is refused before it runs", async () => {
    await using program = await compile(graph({ y: input("x", "float32", [B, 3]).mul(2) }));
    await expect(program.run({ x: floats([2, 4]) })).rejects.toThrow(
      "input x is float32[B,3], got float32[2,4]",
    );
    await expect(program.run({ x: floats([3]) })).rejects.toThrow("input x is float32[B,3], got float32[3]");
    await expect(program.run({ x: ints([1, 3], [1, 2, 3]) })).rejects.toThrow("got int64[1,3]");
    await expect(program.run({})).rejects.toThrow("input x is missing");
    await expect(program.run({ x: floats([1, 3]), z: floats([1]) })).rejects.toThrow(
      "z is not an input; inputs are x",
    );
    const lying = { dtype: "float32", shape: [5, 3], data: new Float32Array(6) } as const;
    await expect(program.run({ x: lying })).rejects.toThrow();
  });
});

describe("names", () => {
  test("of inputs and parameters are free, even those that look like the writer's own", async () => {
    const names = ["v0", "v1", "v2", "c0", "c1", "a/b:0", "weight.é", "1", ""].slice(0, -1);
    const feeds = Object.fromEntries(names.map((n, i) => [n, floats([2], [i + 1, 10 * i])]));
    const sum = names
      .map((n, i) => (i % 2 ? leaf(n, 2) : input(n, "float32", [2])))
      .reduce((a, b) => a.mul(2).add(b));
    const out = await run({ sum, v3: sum.add(1), c2: sum.exp().log() }, feeds);
    const want = [0, 1].map((k) => names.reduce((t, n, i) => (i ? t * 2 : 0) + Number(feeds[n].data[k]), 0));
    expect(values(out.sum)).toEqual(want);
    expect(values(out.v3)).toEqual(want.map((v) => v + 1));
  });

  test("one value may be several outputs, and inputs and constants may be outputs", async () => {
    const x = input("x", "float32", [2]);
    const h = x.add(1);
    const c = constant(floats([2], [5, 6]));
    const out = await run({ a: h, b: h, same: x, also: x, c, d: h.mul(h) }, { x: floats([2], [1, 2]) });
    expect(Object.fromEntries(Object.entries(out).map(([k, t]) => [k, values(t)]))).toEqual({
      a: [2, 3],
      b: [2, 3],
      same: [1, 2],
      also: [1, 2],
      c: [5, 6],
      d: [4, 9],
    });
  });

  test("an output cannot be called like an input or a parameter", () => {
    const x = input("x", "float32", [2]);
    const w = leaf("w", 2);
    expect(() => emitOnnx(graph({ x: x.add(1) }))).toThrow(/output x .*input/);
    expect(() => emitOnnx(graph({ w: w.add(x) }))).toThrow(/output w .*parameter/);
    expect(() => emitOnnx(graph({ w: w.add(x) }), { weights: new Map([["w", floats([2])]]) })).toThrow(
      /output w/,
    );
  });
});

describe("a table that is stored in half precision", () => {
  const table = leaf("table", 8, 3);
  const rows = gather(table, input("ids", "int64", [2]));
  const weights = new Map([["table", castTensor(numbered(8, 3), "float16")]]);
  const text = (castsLate: boolean) =>
    Buffer.from(emitOnnx(graph({ rows }), { weights, castsLate })).toString("latin1");

  test("is cast as a whole, or what is taken of it", () => {
    expect(text(false)).toMatch(/Cast_0.*Gather_1/s);
    expect(text(true)).toMatch(/Gather_0.*Cast_1/s);
  });

  test("or in a quarter, is cast as a whole: lookups take no 8-bit floats", async () => {
    const eights = new Map([["table", castTensor(numbered(8, 3), "float8_e4m3fn")]]);
    const { rows: got } = await run({ rows }, { ids: ints([2], [5, 1]) }, eights); // cast late where it can be
    const all = values(toFloat32(eights.get("table")!));
    expect(values(got)).toEqual([5, 1].flatMap((i) => all.slice(3 * i, 3 * i + 3)));
  });

  test("gives the same numbers, also beside products and as an output", async () => {
    const x = input("x", "float32", [1, 3]);
    const outputs = { rows, y: project(x, table), copy: table };
    const feeds = { ids: ints([2], [5, 1]), x: numbered(1, 3) };
    const got = await run(outputs, feeds, weights);
    const want = await run(outputs, feeds, new Map([["table", numbered(8, 3)]]));
    expect(got).toEqual(want);
    expect(values(got.rows)).toEqual([5, 1].flatMap((i) => values(numbered(8, 3)).slice(3 * i, 3 * i + 3)));
  });
});

test.each([
  [4095, 2],
  [4096, 3],
])("of %i nodes, a result's name is there %i times: from 4096 on its shape is stated", (nodes, times) => {
  const x = input("x", "float32", [symbol("B"), 2]);
  const y = Array.from({ length: nodes }).reduce<Value>((v) => v.add(x), x);
  const text = Buffer.from(emitOnnx(graph({ y }))).toString("latin1");
  expect(text.match(/%v17(?!\d)/g)?.length).toBe(times);
});

test.each(["float8_e4m3fn", "float8_e5m2"] as const)(
  "numbers are rounded to %s as ONNX Runtime does",
  async (dtype) => {
    const g = new Generator(3);
    const sizes = Array.from({ length: 2000 }, (_, i) => (2 * g.random() - 1) * 2 ** ((i % 40) - 20));
    const ties = Array.from({ length: 16 }, (_, i) => (16 + i) / 16).flatMap((v) => [v, -v, v * 2 ** -8]);
    const x = floats([sizes.length + ties.length + 5], [...sizes, ...ties, 0, -0, 1e9, -1e9, Number.NaN]);
    const name = input("x", "float32", x.shape);
    const { y } = await run({ y: name.cast(dtype).cast("float32") }, { x });
    expect(values(toFloat32(castTensor(x, dtype)))).toEqual(values(y));
  },
);

describe("constants and weights", () => {
  const dtypes: DType[] = ["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"];
  test.each(dtypes)("%s keeps its values", async (dtype) => {
    const host = castTensor(floats([3], [0, 1, 1]), dtype);
    const long = castTensor(
      floats(
        [100],
        Array.from({ length: 100 }, (_, i) => i % 2),
      ),
      dtype,
    );
    const out = await run({ c: constant(host), long: constant(long) }, {});
    expect(values(out.c)).toEqual(values(host));
    expect(out.c.dtype).toBe(dtype);
    expect(values(out.long)).toEqual(values(long));
  });

  test("signs of zero, infinities and NaN", async () => {
    const special = [0, -0, Infinity, -Infinity, NaN, 1e-45, 3.4028234663852886e38];
    const { c, inverse } = await run(
      { c: constant(floats([7], special)), inverse: constant(floats([2], [0, -0])).pow(-1) },
      {},
    );
    expect(values(c)).toEqual(Array.from(Float32Array.from(special), Number));
    expect(values(inverse)).toEqual([Infinity, -Infinity]);
  });

  test("views into a larger buffer are cut out", async () => {
    const view = new Float32Array([9, 1, 2, 9]).subarray(1, 3);
    const { y } = await run({ y: leaf("w", 2).mul(2) }, {}, new Map([["w", floats([2], view)]]));
    expect(values(y)).toEqual([2, 4]);
  });

  test("a scalar and an empty tensor", async () => {
    const x = input("x", "float32", []);
    const empty = constant(floats([0, 3]));
    const out = await run(
      { y: x.add(1), joined: concat([empty, x.reshape([1, 1]).expand([1, 3])], 0) },
      { x: floats([], [4]) },
    );
    expect([out.y.shape, values(out.y), values(out.joined)]).toEqual([[], [5], [4, 4, 4]]);
  });
});

test("the same graph gives the same bytes", () => {
  const build = (name: string) => {
    const x = input(name, "float32", [symbol("B"), 6]);
    return graph({
      y: silu(x)
        .reshape([mulDim(2, symbol("B")), 3])
        .softmax(),
    });
  };
  expect(emitOnnx(build("x"))).toEqual(emitOnnx(build("x")));
});
