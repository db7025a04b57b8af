/** @file The pieces: matrices, parts of a graph, and what a graph takes of memory. */

import { expect, test } from "vitest";
import "../../src/platform/node.ts";
import {
  constant,
  type Graph,
  graph,
  input,
  inputsOf,
  nameOf,
  parameter,
  parametersOf,
  peakBytes,
  type Shape,
  symbol,
  type Value,
  verify,
} from "../../src/graph/index.ts";
import { conv2d, linear, rootScope } from "../../src/nn/index.ts";
import { conv, projectInt8, silu } from "../../src/ops/index.ts";
import { rotate, rotation } from "../../src/ops/int8.ts";
import { snrOf } from "../../src/quantize/calibrate.ts";
import { int8Layers, withInt8 } from "../../src/quantize/layers.ts";
import { int8Matrix, rotated, weightBits } from "../../src/quantize/matrix.ts";
import { cut } from "../../src/quantize/parts.ts";
import { compile } from "../../src/runtime/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor } from "../../src/tensor/index.ts";

const B = symbol("B");

test("an int8 matrix has the weight's values within half a step, outputs last", () => {
  const g = new Generator(3);
  const w = g.randn([40, 3, 2, 2]);
  for (const bits of [8, 7]) {
    const { matrix, scale } = int8Matrix(w, [2, 3, 1, 0], bits);
    expect(matrix.shape).toEqual([12, 40]);
    for (let o = 0; o < 40; o++) {
      const row = w.data.subarray(12 * o, 12 * o + 12);
      const most = Math.max(...row.map(Math.abs));
      expect(scale.data[o]).toBeCloseTo(most / (2 ** (bits - 1) - 1), 6);
      for (let c = 0; c < 3; c++)
        for (let k = 0; k < 4; k++) {
          const value = Number(matrix.data[(k * 3 + c) * 40 + o]) * scale.data[o];
          expect(Math.abs(value - row[c * 4 + k])).toBeLessThanOrEqual(scale.data[o] * 0.5001);
        }
    }
  }
});

test("input and weight rotated alike have the same product, and large values of a row cost the others less", async () => {
  const [T, K, O, width] = [16, 640, 96, 64];
  const bits = await weightBits();
  const g = new Generator(4);
  const w = g.randn([O, K]);
  const rows = g.randn([T, K]).data.map((v) => v ** 3); // few are large
  const x = input("x", "float32", [T, K]);
  const exact = x.matmul(constant(w).transpose([1, 0]));
  const int8 = (weight: FloatTensor, v: Value) => {
    const { matrix, scale } = int8Matrix(weight, [1, 0], bits);
    return projectInt8(v, constant(matrix), constant(scale));
  };
  const turned = rotated(w, width);
  const products = {
    exact,
    turned: rotate(x, width).matmul(constant(turned).transpose([1, 0])),
    plain: int8(w, x),
    level: int8(turned, rotate(x, width)),
  };
  await using program = await compile(graph(products));
  const { exact: expected, ...others } = await program.run({ x: floats([T, K], rows) });
  const dB = (name: string) => snrOf([{ y: expected }], [{ y: others[name] }]);
  expect(dB("turned")).toBeGreaterThan(110);
  expect(dB("level") - dB("plain")).toBeGreaterThan(bits === 8 ? 6 : 3); // weights of 7 bits have more error of their own
  expect(rotation([K, O])).toBeUndefined();
  expect(rotation([O, K])).toBe(width);
  expect(rotation([O, 100])).toBeUndefined();
});

test("an int8 convolution of any size is the one of this size", async () => {
  const g = new Generator(6);
  const w = g.randn([3, 2, 3, 3]);
  const { matrix, scale } = int8Matrix(w, [2, 3, 1, 0], 8);
  const of = (shape: Shape, strides: [number, number]) => {
    const x = input("x", "float32", shape);
    const product = conv(x, constant(w), undefined, { strides, pads: [1, 0, 1, 2] });
    return graph({ y: product.op.int8!.product(product, constant(matrix), constant(scale)) });
  };
  for (const [strides, shape] of [
    [
      [1, 1],
      [2, 2, 3, 7],
    ],
    [
      [2, 1],
      [1, 2, 6, 4],
    ],
    [
      [1, 2],
      [2, 2, 5, 8],
    ],
  ] as [[number, number], number[]][]) {
    const x = g.randn(shape);
    await using any = await compile(of([B, 2, symbol("H"), symbol("W")], strides));
    await using one = await compile(of(shape, strides));
    const [{ y }, { y: expected }] = [await any.run({ x }), await one.run({ x })];
    expect(y).toEqual(expected);
  }
});

test("rows of zeros become zeros", () => {
  const { matrix, scale } = int8Matrix(floats([2, 3]), [1, 0], 8);
  expect([...matrix.data, ...scale.data]).toEqual([0, 0, 0, 0, 0, 0, 1, 1]);
});

test("this processor multiplies 8 bits exactly, or is known not to", async () => {
  expect([7, 8]).toContain(await weightBits());
});

/** Four layers one after the other, with a skip over all of them. */
function chain(): Graph {
  const p = rootScope();
  const x = input("x", "float32", [B, 4, 6, 6]);
  const first = silu(conv2d(p.at("a"), x, { out: 8 }));
  const rows = first.reshape([B, 8, 36]).transpose([0, 2, 1]);
  const h = linear(p.at("c"), silu(linear(p.at("b"), rows, { out: 16 })), { out: 8 });
  return graph({ y: h.add(rows), first });
}

function random(g: Graph): Map<string, HostTensor> {
  const generator = new Generator(1);
  return new Map(parametersOf(g).map(({ name, shape }) => [name, generator.randn(shape)]));
}

test("the parts of a graph give together what it gives whole", async () => {
  const g = verify(chain());
  const weights = random(g);
  const x = new Generator(2).randn([2, 4, 6, 6]);
  await using whole = await compile(g, { weights });
  const expected = await whole.run({ x });
  const parts = cut(g, 600);
  expect(parts.length).toBeGreaterThan(2);
  const known: Record<string, HostTensor> = { x };
  for (const part of parts) {
    await using program = await compile(verify(part), { weights });
    const feeds = inputsOf(part).map((v) => [nameOf(v), known[nameOf(v)]]);
    Object.assign(known, await program.run(Object.fromEntries(feeds)));
  }
  expect(known.y.data).toEqual(expected.y.data);
  expect(known.first.data).toEqual(expected.first.data);
});

test("pointwise convolutions and layers with a row a picture are left out", () => {
  const p = rootScope();
  const shortcut = conv2d(p.at("shortcut"), input("x", "float32", [B, 4, 6, 6]), { out: 8, kernel: 1 });
  const embedding = linear(p.at("embedding"), input("t", "float32", [B, 4]), { out: 8 });
  expect(int8Layers(graph({ shortcut, embedding }))).toEqual([]);
});

test("layers are found by their weights, cut ones by their rows", () => {
  const x = input("x", "float32", [B, 3, 4]);
  const w = parameter("w", [6, 4], { kind: "constant", value: 0 });
  const halves = [0, 3].map((from) => linear(cutScope(w, from), x, { out: 3, bias: false }));
  const g = graph({ y: halves[0].mul(halves[1]) });
  expect(int8Layers(g).map(({ key, rows }) => [key, rows])).toEqual([
    ["w:0-3", [0, 3]],
    ["w:3-6", [3, 6]],
  ]);
  expect(int8Layers(g, 13)).toEqual([]);
  expect(int8Layers(chain()).map(({ key }) => key)).toEqual(["a.weight", "b.weight", "c.weight"]);
  const mixed = verify(withInt8(g, new Set(["w:3-6"])));
  expect(parametersOf(mixed).map(({ name }) => name)).toEqual(["w", "w:3-6.int8", "w:3-6.scale"]);
});

function cutScope(w: ReturnType<typeof parameter>, from: number) {
  return { ...rootScope("w"), param: () => w.slice(0, from, from + 3) };
}

test("peak memory: what is alive at the same time, weights aside", () => {
  const x = input("x", "float32", [B, 10]);
  const w = parameter("w", [10], { kind: "constant", value: 0 });
  const a = x.exp(); // x, a
  const b = a.mul(w); // x, a, b
  const c = b.add(x); // x, b, c: a is gone
  expect(peakBytes(graph({ c }), { B: 5 })).toBe(3 * 5 * 10 * 4);
  expect(peakBytes(graph({ c, a }), { B: 5 })).toBe(4 * 5 * 10 * 4);
});
