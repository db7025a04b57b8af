/**
 * @file One table drives every operator: value against a naive reference, gradient against central differences,
 * on each runtime.
 */

import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import {
  checkpoint,
  constant,
  graph,
  input,
  isParameter,
  parameter,
  print,
  type Value,
  verify,
  vjp,
} from "../../src/graph/index.ts";
import {
  attention,
  concat,
  conv,
  convInt8,
  equal,
  gather,
  gatherTokens,
  gelu,
  gemm,
  groupNormalization,
  layerNormalization,
  less,
  logSoftmax,
  project,
  projectInt8,
  quickGelu,
  relu,
  resizeNearest,
  scalar,
  silu,
  where,
} from "../../src/ops/index.ts";
import { weightBits } from "../../src/quantize/matrix.ts";
import { compile } from "../../src/runtime/index.ts";
import { type FloatTensor, floats, type HostTensor, ints, sizeOf } from "../../src/tensor/index.ts";
import * as ref from "./reference.ts";
import { runtimes } from "./runtimes.ts";

type Reference = (...inputs: ref.Array[]) => ref.Array;
interface Case {
  name: string;
  shapes: number[][];
  build: (...inputs: Value[]) => Value;
  reference: Reference;
  /** Domain of the random inputs. */
  range?: [number, number];
  /** False where there is no gradient by design. */
  differentiable?: boolean;
}

const tokens = ints([2], [2, 0]);
const rows = ints([2, 3], [4, 0, 4, 1, 1, 3]);
const constantOf = (name: string, t: ReturnType<typeof ints>) => input(name, t.dtype, t.shape);
const extraFeeds = { tokens, rows };

/** Largest magnitude of an int8 weight whose products this processor adds exactly. */
const most8 = 2 ** ((await weightBits()) - 1) - 1;
/** int8 weights [inner, out] that use all that range, and a scale for each output. */
const int8Weights = (inner: number, out: number): [HostTensor, FloatTensor] => [
  {
    dtype: "int8",
    shape: [inner, out],
    data: Int8Array.from({ length: inner * out }, (_, i) => ((i * 89) % (2 * most8 + 1)) - most8),
  },
  floats(
    [out],
    Float32Array.from({ length: out }, (_, i) => (i + 1) / 500),
  ),
];
const linear8 = int8Weights(5, 4);
const kernel8 = int8Weights(18, 3);
const kernel1 = int8Weights(2, 3);
const convolution8 = (kernel: number, stride: number, pad: number, height: number, width = height) => ({
  kernel: [kernel, kernel],
  strides: [stride, stride] as const,
  pads: [pad, pad, pad, pad] as const,
  shape: [2, 3, height, width],
});

const opCase = (
  name: string,
  shapes: number[][],
  build: Case["build"],
  reference: Reference,
  more: Partial<Case> = {},
): Case => ({
  name,
  shapes,
  build,
  reference,
  ...more,
});
const unary = (
  name: string,
  build: (x: Value) => Value,
  f: (x: number) => number,
  more: Partial<Case> = {},
) => opCase(name, [[2, 3, 4]], build, (x) => ref.map(f, x), more);
const binary = (
  name: string,
  build: (a: Value, b: Value) => Value,
  f: (a: number, b: number) => number,
  more: Partial<Case> = {},
) => [
  opCase(
    name,
    [
      [2, 3],
      [2, 3],
    ],
    build,
    (a, b) => ref.map(f, a, b),
    more,
  ),
  opCase(
    `${name} broadcast`,
    [
      [2, 3, 4],
      [3, 1],
    ],
    build,
    (a, b) => ref.map(f, a, b),
    more,
  ),
  opCase(
    `${name} broadcast left`,
    [
      [1, 4],
      [2, 3, 4],
    ],
    build,
    (a, b) => ref.map(f, a, b),
    more,
  ),
];
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

const cases: Case[] = [
  ...binary(
    "add",
    (a, b) => a.add(b),
    (a, b) => a + b,
  ),
  ...binary(
    "sub",
    (a, b) => a.sub(b),
    (a, b) => a - b,
  ),
  ...binary(
    "mul",
    (a, b) => a.mul(b),
    (a, b) => a * b,
  ),
  ...binary(
    "div",
    (a, b) => a.div(b),
    (a, b) => a / b,
    { range: [0.5, 2] },
  ),
  ...binary("maximum", (a, b) => a.maximum(b), Math.max),
  ...binary("minimum", (a, b) => a.minimum(b), Math.min),
  unary(
    "neg",
    (x) => x.neg(),
    (x) => -x,
  ),
  unary("abs", (x) => x.abs(), Math.abs),
  unary("sqrt", (x) => x.sqrt(), Math.sqrt, { range: [0.5, 2] }),
  unary("exp", (x) => x.exp(), Math.exp),
  unary("log", (x) => x.log(), Math.log, { range: [0.5, 2] }),
  unary("tanh", (x) => x.tanh(), Math.tanh),
  unary("sigmoid", (x) => x.sigmoid(), sigmoid),
  unary("sin", (x) => x.sin(), Math.sin),
  unary("cos", (x) => x.cos(), Math.cos),
  unary("erf", (x) => x.erf(), ref.erf),
  unary(
    "pow 2",
    (x) => x.pow(2),
    (x) => x * x,
  ),
  unary(
    "pow 3",
    (x) => x.pow(3),
    (x) => x ** 3,
  ),
  unary(
    "pow -0.5",
    (x) => x.pow(-0.5),
    (x) => x ** -0.5,
    { range: [0.5, 2] },
  ),
  unary("relu", relu, (x) => Math.max(0, x)),
  unary("silu", silu, (x) => x * sigmoid(x)),
  unary("quickGelu", quickGelu, (x) => x * sigmoid(1.702 * x)),
  unary("gelu", gelu, (x) => x * 0.5 * (1 + ref.erf(x / Math.SQRT2))),
  unary(
    "cast to int64 and back",
    (x) => x.mul(10).cast("int64").cast("float32"),
    (x) => Math.trunc(x * 10),
    { differentiable: false },
  ),
  unary(
    "less",
    (x) => where(less(x, 0.1), x.mul(2), x),
    (x) => (x < 0.1 ? 2 * x : x),
  ),
  unary(
    "equal",
    (x) => where(equal(x, x), x, scalar(0, "float32")),
    (x) => x,
  ),
  opCase(
    "reshape",
    [[2, 3, 4]],
    (x) => x.reshape([6, -1]),
    (x) => ref.reshape(x, [6, 4]),
  ),
  opCase(
    "transpose",
    [[2, 3, 4]],
    (x) => x.transpose([2, 0, 1]),
    (x) => ref.transpose(x, [2, 0, 1]),
  ),
  opCase(
    "expand",
    [[3, 1]],
    (x) => x.expand([2, 3, 4]),
    (x) => ref.map((a) => a, x, ref.full([2, 3, 4], 0)),
  ),
  opCase(
    "slice",
    [[4, 5]],
    (x) => x.slice(1, 1, -1),
    (x) => ref.slice(x, 1, 1, 4, 1),
  ),
  opCase(
    "slice step",
    [[4, 6]],
    (x) => x.slice(1, 1, 6, 2),
    (x) => ref.slice(x, 1, 1, 6, 2),
  ),
  opCase(
    "slice step to the end",
    [[7]],
    (x) => x.slice(0, 1, 7, 3),
    (x) => ref.slice(x, 0, 1, 7, 3),
  ),
  opCase(
    "slice reversed",
    [[4, 5]],
    (x) => x.slice(1, -1, -6, -1),
    (x) => ref.slice(x, 1, 4, -1, -1),
  ),
  opCase(
    "pad",
    [[2, 3]],
    (x) => x.pad(1, 1, 2),
    (x) => ref.pad(x, 1, 1, 2),
  ),
  opCase(
    "unsqueeze, squeeze",
    [[2, 3]],
    (x) => x.unsqueeze(0, 2).squeeze(0),
    (x) => ref.reshape(x, [2, 1, 3]),
  ),
  opCase(
    "concat",
    [
      [2, 3],
      [2, 1],
      [2, 2],
    ],
    (...v) => concat(v, 1),
    (...v) => ref.concat(v, 1),
  ),
  opCase(
    "gather",
    [[5, 3]],
    (x) => gather(x, constantOf("rows", rows)),
    (x) => ref.gather(x, rows),
  ),
  opCase(
    "gather axis 1",
    [[2, 5]],
    (x) => gather(x, constantOf("rows", rows), 1),
    (x) => ref.transpose(ref.reshape(ref.gather(ref.transpose(x, [1, 0]), rows), [2, 3, 2]), [2, 0, 1]),
    { differentiable: false },
  ),
  opCase(
    "gatherTokens",
    [[2, 3, 4]],
    (x) => gatherTokens(x, constantOf("tokens", tokens)),
    (x) => ref.tokens(x, tokens),
  ),
  opCase(
    "resizeNearest",
    [[1, 2, 2, 3]],
    (x) => resizeNearest(x, [4, 6]),
    (x) => ref.resize(x, 4, 6),
  ),
  opCase(
    "resizeNearest odd",
    [[1, 2, 2, 2]],
    (x) => resizeNearest(x, [3, 3]),
    (x) => ref.resize(x, 3, 3),
    { differentiable: false },
  ),
  opCase(
    "sum",
    [[2, 3, 4]],
    (x) => x.sum(),
    (x) => ref.reduce(x, [0, 1, 2], false, (v) => v.reduce((a, b) => a + b, 0)),
  ),
  opCase(
    "sum axes",
    [[2, 3, 4]],
    (x) => x.sum([0, 2]),
    (x) => ref.reduce(x, [0, 2], false, (v) => v.reduce((a, b) => a + b, 0)),
  ),
  opCase(
    "mean keepdims",
    [[2, 3, 4]],
    (x) => x.mean([-1], true),
    (x) => ref.reduce(x, [2], true, (v) => v.reduce((a, b) => a + b, 0) / v.length),
  ),
  opCase(
    "max",
    [[2, 3, 4]],
    (x) => x.max([1]),
    (x) => ref.reduce(x, [1], false, (v) => Math.max(...v)),
  ),
  opCase(
    "softmax",
    [[2, 3, 4]],
    (x) => x.softmax(),
    (x) => ref.softmax(x),
  ),
  opCase(
    "softmax axis 1",
    [[2, 3, 4]],
    (x) => x.softmax(1),
    (x) => ref.transpose(ref.softmax(ref.transpose(x, [0, 2, 1])), [0, 2, 1]),
  ),
  opCase(
    "logSoftmax",
    [[2, 5]],
    (x) => logSoftmax(x),
    (x) => ref.map(Math.log, ref.softmax(x)),
  ),
  opCase(
    "matmul",
    [
      [3, 4],
      [4, 5],
    ],
    (a, b) => a.matmul(b),
    ref.matmul,
  ),
  opCase(
    "matmul batched",
    [
      [2, 3, 4],
      [2, 4, 5],
    ],
    (a, b) => a.matmul(b),
    ref.matmul,
  ),
  opCase(
    "matmul broadcast",
    [
      [2, 1, 3, 4],
      [3, 4, 2],
    ],
    (a, b) => a.matmul(b),
    ref.matmul,
  ),
  ...[false, true].flatMap((transA) =>
    [false, true].map((transB) =>
      opCase(
        `gemm ${transA} ${transB}`,
        [transA ? [4, 3] : [3, 4], transB ? [5, 4] : [4, 5], [5]],
        (a, b, bias) => gemm(a, b, { transA, transB, bias }),
        (a, b, bias) =>
          ref.map(
            (x, y) => x + y,
            ref.matmul(transA ? ref.transpose(a, [1, 0]) : a, transB ? ref.transpose(b, [1, 0]) : b),
            bias,
          ),
      ),
    ),
  ),
  opCase(
    "project",
    [[2, 3, 4], [5, 4], [5]],
    (x, w, b) => project(x, w, b),
    (x, w, b) => ref.map((p, q) => p + q, ref.matmul(x, ref.transpose(w, [1, 0])), b),
  ),
  ...(
    [
      ["conv 3×3", [2, 3, 5, 4], [4, 3, 3, 3], { pads: [1, 1, 1, 1] }],
      ["conv 1×1", [2, 3, 4, 4], [5, 3, 1, 1], {}],
      ["conv stride 2", [1, 2, 6, 6], [3, 2, 3, 3], { strides: [2, 2], pads: [1, 1, 1, 1] }],
      ["conv stride 2, asymmetric", [1, 2, 6, 6], [3, 2, 3, 3], { strides: [2, 2], pads: [0, 0, 1, 1] }],
      ["conv stride 2, odd", [1, 2, 5, 7], [2, 2, 3, 3], { strides: [2, 2], pads: [1, 1, 1, 1] }],
      ["conv patches", [2, 3, 4, 6], [4, 3, 2, 2], { strides: [2, 2] }],
      ["conv 4×4 stride 2", [1, 2, 6, 6], [2, 2, 4, 4], { strides: [2, 2], pads: [1, 1, 1, 1] }],
    ] as const
  ).map(([name, x, w, options]) =>
    opCase(
      name,
      [[...x], [...w], [w[0]]],
      (a, b, c) => conv(a, b, c, options as object),
      (a, b, c) => ref.conv(a, b, c, options as object),
    ),
  ),
  opCase(
    "layerNormalization",
    [[2, 3, 4], [4], [4]],
    (x, s, b) => layerNormalization(x, s, b),
    (x, s, b) => ref.normalize(x, s, b, 4, 1e-5),
  ),
  opCase(
    "groupNormalization",
    [[2, 4, 3, 2], [4], [4]],
    (x, s, b) => groupNormalization(x, s, b, { groups: 2 }),
    (x, s, b) => ref.groupNorm(x, s, b, 2),
  ),
  opCase(
    "groupNormalization of tokens",
    [[2, 6, 5], [6], [6]],
    (x, s, b) => groupNormalization(x, s, b, { groups: 3 }),
    (x, s, b) => ref.groupNorm(x, s, b, 3),
  ),
  opCase(
    "attention",
    [
      [2, 3, 8],
      [2, 5, 8],
      [2, 5, 8],
    ],
    (q, k, v) => attention(q, k, v, { heads: 2 }),
    (q, k, v) => ref.attention(q, k, v, 2),
  ),
  opCase(
    "attention, causal mask",
    [
      [2, 3, 4],
      [2, 3, 4],
      [2, 3, 4],
    ],
    (q, k, v) => attention(q, k, v, { heads: 2, mask: ref.causalMask(3) }),
    (q, k, v) => ref.attention(q, k, v, 2, true),
  ),
  opCase(
    "projectInt8",
    [[2, 3, 5], [4]],
    (x, b) => projectInt8(x, constant(linear8[0]), constant(linear8[1]), b),
    (x, b) => ref.projectInt8(x, ref.fromTensor(linear8[0]), ref.fromTensor(linear8[1]), b),
    { differentiable: false },
  ),
  opCase(
    "projectInt8 without bias, of zeros",
    [[3, 5]],
    (x) => projectInt8(x.mul(0), constant(linear8[0]), constant(linear8[1])),
    () => ref.full([3, 4], 0),
    { differentiable: false },
  ),
  opCase(
    "convInt8 3×3, padded",
    [[2, 2, 4, 4], [3]],
    (x, b) => convInt8(x, constant(kernel8[0]), constant(kernel8[1]), b, convolution8(3, 1, 1, 4)),
    (x, b) => ref.convInt8(x, ref.fromTensor(kernel8[0]), ref.fromTensor(kernel8[1]), b, 3, 1, 1),
    { differentiable: false },
  ),
  opCase(
    "convInt8 3×3, stride 2, of what is never negative",
    [[2, 2, 5, 5], [3]],
    (x, b) => convInt8(x, constant(kernel8[0]), constant(kernel8[1]), b, convolution8(3, 2, 1, 3)),
    (x, b) => ref.convInt8(x, ref.fromTensor(kernel8[0]), ref.fromTensor(kernel8[1]), b, 3, 2, 1),
    { differentiable: false, range: [0.5, 1.5] },
  ),
  opCase(
    "convInt8 3×3, stride 2, of a wide picture",
    [[2, 2, 3, 7], [3]],
    (x, b) => convInt8(x, constant(kernel8[0]), constant(kernel8[1]), b, convolution8(3, 2, 1, 2, 4)),
    (x, b) => ref.convInt8(x, ref.fromTensor(kernel8[0]), ref.fromTensor(kernel8[1]), b, 3, 2, 1),
    { differentiable: false },
  ),
  opCase(
    "convInt8 1×1",
    [[2, 2, 3, 3], [3]],
    (x, b) => convInt8(x, constant(kernel1[0]), constant(kernel1[1]), b, convolution8(1, 1, 0, 3)),
    (x, b) => ref.convInt8(x, ref.fromTensor(kernel1[0]), ref.fromTensor(kernel1[1]), b, 1, 1, 0),
    { differentiable: false },
  ),
  opCase(
    "checkpoint",
    [[2, 4, 3, 2], [4], [4]],
    (x, s, b) => checkpoint((h) => silu(groupNormalization(h, s, b, { groups: 2 })).add(h), x),
    (x, s, b) => ref.map((n, h) => n * sigmoid(n) + h, ref.groupNorm(x, s, b, 2), x),
  ),
];

/** Deterministic inputs: no two equal, none near a kink of the piecewise operators. */
function inputsOf({ shapes, range: [low, high] = [-1.5, 1.5] }: Case): FloatTensor[] {
  let seed = 12345;
  return shapes.map((shape) =>
    floats(
      shape,
      Float32Array.from({ length: sizeOf(shape) }, () => {
        seed = (seed * 1103515245 + 12345) % 2147483648;
        return low + (high - low) * (seed / 2147483648);
      }),
    ),
  );
}

for (const runtime of runtimes)
  describe.skipIf(runtime.skip)(
    `operators on ${runtime.name}${runtime.skip ? ` (skipped: ${runtime.skip})` : ""}`,
    () => {
      test.each(cases.map((c) => [c.name, c] as const))("%s", async (_, c) => {
        const tensors = inputsOf(c);
        const leaves = tensors.map((t, i) =>
          parameter(`x${i}`, [...t.shape], { kind: "constant", value: 0 }),
        );
        const y = c.build(...leaves);
        const feeds = { ...Object.fromEntries(tensors.map((t, i) => [`x${i}`, t])) } as Record<
          string,
          FloatTensor
        >;
        const used = new Set(
          print(graph({ y }))
            .match(/^%(rows|tokens) /gm)
            ?.map((m) => m.slice(1).trim()),
        );
        const extra = Object.fromEntries(Object.entries(extraFeeds).filter(([k]) => used.has(k)));
        const expected = c.reference(...tensors.map(ref.fromTensor));
        expect(y.shape).toEqual(expected.shape);

        const differentiable = c.differentiable ?? true;
        const weight = input("dy", "float32", y.shape);
        const gradients = differentiable ? vjp([y], [weight], leaves) : [];
        const g = verify(graph({ y, ...Object.fromEntries(gradients.map((v, i) => [`g${i}`, v])) }));
        await using program = await compile(g, { device: runtime.device });
        const dy = floats(
          expected.shape,
          expected.data.map((_v, i) => Math.cos(3 * i + 1)),
        );
        const needed = new Set(
          print(g)
            .match(/^%(x\d+|dy) /gm)
            ?.map((m) => m.slice(1).trim()),
        );
        const all = Object.fromEntries(Object.entries({ ...feeds, dy }).filter(([k]) => needed.has(k)));
        const out = await program.run({ ...all, ...extra });
        expect(ref.distance(out.y.data as Float32Array, expected.data)).toBeLessThan(runtime.tolerance);

        // d/dx Σ dy·f(x) by central differences of the float64 reference
        gradients.forEach((_g, i) => {
          const numeric = ref.centralDifferences(c.reference, tensors.map(ref.fromTensor), i, dy.data);
          expect(ref.distance(out[`g${i}`].data as Float32Array, numeric), `gradient ${i}`).toBeLessThan(
            runtime.gradientTolerance,
          );
        });
      });
    },
  );

test("every operator has a case", () => {
  const folder = new URL("../../src/ops/", import.meta.url);
  const sources = readdirSync(folder).map((file) => readFileSync(new URL(file, folder), "utf8"));
  const definition = /(?:\bname: |\b(?:unary|binary|reduction|activation)\(\s*)"([A-Z]\w*)"/g;
  const defined = sources.flatMap((text) => [...text.matchAll(definition)].map((match) => match[1]));
  expect(defined.length).toBeGreaterThan(40);
  const graphs = cases.map((c) => {
    const leaves = inputsOf(c).map((t, i) =>
      parameter(`x${i}`, [...t.shape], { kind: "constant", value: 0 }),
    );
    const y = c.build(...leaves);
    const gradients = (c.differentiable ?? true) ? vjp([y], [input("dy", "float32", y.shape)], leaves) : [];
    return print(graph({ y, ...Object.fromEntries(gradients.map((v, i) => [`g${i}`, v])) }));
  });
  const used = new Set(graphs.flatMap((text) => [...text.matchAll(/ = (\w+)\(/g)].map((match) => match[1])));
  // Project is a Gemm of open sizes: test/runtime/program.test.ts compares the two.
  expect(defined.filter((name) => !used.has(name))).toEqual(["Project"]);
});

test("every parameter leaf is known by name", () => {
  expect(isParameter(parameter("w", [1], { kind: "constant", value: 0 }))).toBe(true);
});
