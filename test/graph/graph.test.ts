/** @file Graphs: nodes are shared, leaves are known by name, illegal graphs are refused, the text form is stable. */

import { describe, expect, test } from "vitest";
import {
  apply,
  constant,
  flopsOf,
  graph,
  input,
  inputsOf,
  type OpDef,
  output,
  parameter,
  parametersOf,
  print,
  substitute,
  symbol,
  topological,
  Value,
  verify,
} from "../../src/graph/index.ts";
import { conv2d, linear, rootScope } from "../../src/nn/index.ts";
import { attention, concat, layerNormalization, scalar, silu } from "../../src/ops/index.ts";
import { floats, ints } from "../../src/tensor/index.ts";

const x = input("x", "float32", [2, 3]);
const w = parameter("w", [3, 4], { kind: "normal", std: 1 });

describe("nodes", () => {
  test("the same operator on the same inputs is the same node", () => {
    expect(x.add(1)).toBe(x.add(1));
    expect(x.mul(x.matmul(w).sum())).toBe(x.mul(x.matmul(w).sum()));
    expect(x.slice(1, 0, 2)).not.toBe(x.slice(1, 0, 1));
    expect(x.add(1)).not.toBe(x.add(2));
    expect(x.sub(x.add(1))).not.toBe(x.add(1).sub(x));
    expect(input("x", "float32", [2, 3])).toBe(x);
    expect(input("x", "float32", [3, 2])).not.toBe(x);
    expect(input("x", "int64", [2, 3])).not.toBe(x);
    expect(parameter("w", [3, 4], { kind: "normal", std: 2 })).not.toBe(w);
  });

  test("small constants are one by content, to the sign of zero and the type", () => {
    expect(scalar(2, "float32")).toBe(scalar(2, "float32"));
    expect(scalar(0, "float32")).not.toBe(scalar(-0, "float32"));
    expect(scalar(2, "float32")).not.toBe(scalar(2, "int64"));
    expect(constant(floats([1], [2]))).not.toBe(scalar(2, "float32"));
    expect(constant(floats([2], [1, Number.NaN]))).toBe(constant(floats([2], [1, Number.NaN])));
  });

  test("large constants are one by identity", () => {
    const big = floats([1000]);
    expect(constant(big)).toBe(constant(big));
    expect(constant(big)).not.toBe(constant(floats([1000])));
  });

  test("are frozen", () => {
    expect(() => Object.assign(x, { dtype: "int64" })).toThrow(TypeError);
    expect(() => (x.add(1).inputs as Value[]).push(x)).toThrow(TypeError);
  });

  test("operators that differ only in name are kept apart", () => {
    const op = (): OpDef => ({ name: "Same", infer: ([v]) => v, onnx: (_, v) => [...v] });
    const [a, b] = [op(), op()];
    expect(apply(a, [x])).toBe(apply(a, [x]));
    expect(apply(a, [x])).not.toBe(apply(b, [x]));
  });
});

describe("what does not fit is refused when the graph is built", () => {
  const y = input("y", "float32", [4, 5]);
  const i = input("i", "int64", [2, 3]);
  test.each<[string, () => unknown, string]>([
    ["broadcast", () => x.add(y), "Add: shapes [2,3] and [4,5] do not broadcast"],
    ["types", () => x.mul(i), "Mul: operands must have one type, got float32[2,3] and int64[2,3]"],
    ["matmul", () => x.matmul(y), "MatMul: inner dimensions of float32[2,3] and float32[4,5] differ"],
    ["reshape", () => x.reshape([4, -1]), "Reshape: float32[2,3] does not fit [4,-1]"],
    ["reshape to another size", () => x.reshape([4, 2]), "Reshape: float32[2,3] does not fit [4,2]"],
    ["transpose", () => x.transpose([0, 0]), "Transpose: [0,0] does not permute float32[2,3]"],
    ["concat", () => concat([x, y], 0), "Concat: float32[2,3], float32[4,5] differ outside axis 0"],
    [
      "attention",
      () => attention(i.reshape([1, 2, 3]), i.reshape([1, 2, 3]), i.reshape([1, 2, 3]), { heads: 2 }),
      "do not fit 2 heads",
    ],
    [
      "linear",
      () => linear(rootScope("a.b"), linear(rootScope("c"), x, { out: 4 }).matmul(y), { out: 0 }).add(y),
      "do not broadcast",
    ],
    [
      "layer norm",
      () => layerNormalization(x, y, y),
      "LayerNormalization: scale float32[4,5] does not fit float32[2,3]",
    ],
    [
      "the place in the model",
      () => conv2d(rootScope("mid.conv"), x, { out: 4 }),
      "at mid.conv: Conv: expected NCHW, got float32[2,3]",
    ],
  ])("%s", (_, build, message) => {
    expect(build).toThrow(message);
  });
});

describe("topological", () => {
  test("inputs come before users, each once", () => {
    const h = x.matmul(w);
    const y = silu(h).add(h).mul(h.sum());
    const order = topological([y, h]);
    expect(new Set(order).size).toBe(order.length);
    for (const v of order) for (const u of v.inputs) expect(order.indexOf(u)).toBeLessThan(order.indexOf(v));
    expect(order.at(-1)).toBe(y);
  });

  test("chains far deeper than the stack", () => {
    let y = x;
    for (let i = 0; i < 30_000; i++) y = y.add(x);
    expect(topological([y])).toHaveLength(30_001);
    expect(print(graph({ y })).split("\n")).toHaveLength(30_002);
  });

  test("inputs and parameters, in order of first use", () => {
    const b = parameter("b", [4], { kind: "constant", value: 0 });
    const g = graph({ y: x.matmul(w).add(b), z: input("z", "float32", [2]).mul(2) });
    expect(inputsOf(g).map((v) => v.attrs.name)).toEqual(["x", "z"]);
    expect(parametersOf(g)).toEqual([
      { name: "w", shape: [3, 4], init: { kind: "normal", std: 1 }, value: w },
      { name: "b", shape: [4], init: { kind: "constant", value: 0 }, value: b },
    ]);
    expect(parametersOf([x.matmul(w)]).map((p) => p.name)).toEqual(["w"]);
  });
});

describe("substitute", () => {
  test("rebuilds what depends on the replaced and shares the rest", () => {
    const [left, right] = [x.exp(), w.tanh()];
    const y = left.matmul(right);
    const z = input("z", "float32", [2, 3]);
    const [replaced] = substitute([y], new Map([[x, z]]));
    expect(replaced).toBe(z.exp().matmul(right));
    expect(replaced.inputs[1]).toBe(right);
    expect(substitute([y], new Map())[0]).toBe(y);
  });

  test("types follow", () => {
    const [y] = substitute([x.exp().sum([1])], new Map([[x, input("x", "float32", [7, 3])]]));
    expect(y.shape).toEqual([7]);
  });
});

describe("verify", () => {
  test("passes what the builders make", () => {
    const g = graph({
      y: layerNormalization(x, w.slice(1, 0, 1).reshape([3]), w.slice(1, 1, 2).reshape([3])),
    });
    expect(verify(g)).toBe(g);
  });

  test("two leaves of one name", () => {
    const other = input("x", "float32", [2, 1]);
    expect(() => verify(graph({ y: x.add(other) }))).toThrow(
      "verify: two different leaves are called x: float32[2,3] and float32[2,1]",
    );
    const clash = parameter("x", [2, 3], { kind: "constant", value: 0 });
    expect(() => verify(graph({ y: x.add(clash) }))).toThrow("verify: two different leaves are called x");
  });

  test("a node that holds another type than its operator infers", () => {
    const { op, inputs, attrs } = x.add(1);
    const forged = new Value(op, inputs, attrs, [{ dtype: "float32", shape: [2, 4] }]);
    expect(() => verify(graph({ y: forged.exp() }))).toThrow(
      "verify: Add holds float32[2,4] but infers float32[2,3]",
    );
    const typed = new Value(op, inputs, attrs, [{ dtype: "int64", shape: [2, 3] }]);
    expect(() => verify(graph({ y: typed }))).toThrow("verify: Add holds int64[2,3] but infers float32[2,3]");
  });

  test("inputs that do not fit each other", () => {
    const { op } = x.matmul(w);
    const forged = new Value(op, [x, x], {}, [{ dtype: "float32", shape: [2, 3] }]);
    expect(() => verify(graph({ y: forged }))).toThrow("MatMul: inner dimensions");
  });
});

test("the text form", () => {
  const image = input("image", "float32", [symbol("B"), 3, symbol("H"), symbol("W")]);
  const h = conv2d(rootScope("stem"), image, { out: 8, stride: 2 });
  const rows = silu(h)
    .mean([2, 3])
    .add(
      constant(ints([2], [1, 2]))
        .cast("float32")
        .sum(),
    );
  const table = constant(floats([9, 8]));
  const norm = layerNormalization(rows, table.slice(0, 0, 1).reshape([8]), table.slice(0, 1, 2).reshape([8]));
  expect(`\n${print(graph({ norm, deviation: output(norm, 2), image }))}\n`).toMatchInlineSnapshot(`
    "
    %image = Input() : float32[B,3,H,W]
    %stem.weight = Parameter() : float32[8,3,3,3]
    %stem.bias = Parameter() : float32[8]
    %3 = Conv(%image, %stem.weight, %stem.bias) {strides: [2,2], pads: [1,1,1,1], group: 1} : float32[B,8,floor((1+H)/2),floor((1+W)/2)]
    %4 = QuickGelu(%3) {alpha: 1} : float32[B,8,floor((1+H)/2),floor((1+W)/2)]
    %5 = ReduceMean(%4) {axes: [2,3], keepdims: false} : float32[B,8]
    %6 = Constant() {value: [1,2]} : int64[2]
    %7 = Cast(%6) {to: float32} : float32[2]
    %8 = ReduceSum(%7) {axes: [0], keepdims: false} : float32[]
    %9 = Add(%5, %8) : float32[B,8]
    %10 = Constant() {value: …[9,8]} : float32[9,8]
    %11 = Slice(%10) {axis: 0, start: 0, end: 1, step: 1} : float32[1,8]
    %12 = Reshape(%11) {shape: [8]} : float32[8]
    %13 = Slice(%10) {axis: 0, start: 1, end: 2, step: 1} : float32[1,8]
    %14 = Reshape(%13) {shape: [8]} : float32[8]
    %15 = LayerNormalization(%9, %12, %14) {eps: 0.00001} : float32[B,8]
    %16 = Output(%15) {index: 2} : float32[B,1]
    return norm = %15
    return deviation = %16
    return image = %image
    "
  `);
});

describe("flopsOf", () => {
  test("products count a multiplication and an addition each", () => {
    expect(flopsOf(graph({ y: x.matmul(w) }))).toBe(2 * 2 * 3 * 4);
    const batched = input("a", "float32", [5, 2, 3]).matmul(input("b", "float32", [3, 7]));
    expect(flopsOf(graph({ batched }))).toBe(2 * 5 * 2 * 3 * 7);
    expect(flopsOf(graph({ y: linear(rootScope(), input("t", "float32", [2, 6, 3]), { out: 5 }) }))).toBe(
      2 * 12 * 3 * 5,
    );
    const image = input("image", "float32", [2, 3, 8, 8]);
    expect(flopsOf(graph({ y: conv2d(rootScope("c"), image, { out: 5 }) }))).toBe(2 * (2 * 5 * 64) * 27);
    expect(flopsOf(graph({ y: conv2d(rootScope("c"), image, { out: 5, stride: 2 }) }))).toBe(
      2 * (2 * 5 * 16) * 27,
    );
    const [q, kv] = [input("q", "float32", [2, 6, 8]), input("kv", "float32", [2, 9, 8])];
    expect(flopsOf(graph({ y: attention(q, kv, kv, { heads: 2 }) }))).toBe(2 * 2 * (2 * 6 * 9 * 8));
  });

  test("a shared product counts once, cheap operators not at all", () => {
    const h = x.matmul(w);
    expect(flopsOf(graph({ y: h.exp().add(h), z: h }))).toBe(48);
    expect(flopsOf(graph({ y: x.exp().sum() }))).toBe(0);
  });

  test("sizes that stay open are given", () => {
    const g = graph({ y: input("s", "float32", [symbol("B"), 3]).matmul(w) });
    expect(flopsOf(g, { B: 5 })).toBe(2 * 5 * 3 * 4);
    expect(() => flopsOf(g)).toThrow(/no value for symbol B/);
  });
});
