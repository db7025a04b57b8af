/** @file Matrix products: batched MatMul, and Gemm with transposition flags for linear layers. */

import { apply, isStatic, type OpDef, sizeDim, typeText, type Value } from "../graph/index.ts";
import { ints } from "../tensor/index.ts";
import { broadcast } from "./elementwise.ts";
import { projectInt8, rotate, rotation } from "./int8.ts";

function swapLast(x: Value): Value {
  const perm = x.shape.map((_, i) => i);
  [perm[x.rank - 2], perm[x.rank - 1]] = [x.rank - 1, x.rank - 2];
  return x.transpose(perm);
}

const matmulOp: OpDef = {
  name: "MatMul",
  infer: ([a, b]) => {
    if (a.rank < 2 || b.rank < 2 || a.shape[a.rank - 1] !== b.shape[b.rank - 2])
      throw new Error(`MatMul: inner dimensions of ${typeText(a)} and ${typeText(b)} differ`);
    const batch = broadcast("MatMul", a.shape.slice(0, -2), b.shape.slice(0, -2));
    return { dtype: a.dtype, shape: [...batch, a.shape[a.rank - 2], b.shape[b.rank - 1]] };
  },
  // d(ab) = da·b + a·db
  grad: (dy, { inputs: [a, b] }) => [dy.matmul(swapLast(b)), swapLast(a).matmul(dy)],
  flops: (y) => sizeDim([2, ...y.shape, y.inputs[0].shape[y.inputs[0].rank - 1]]),
  onnx: (emit, inputs) => emit.node("MatMul", inputs),
};

const gemmOp: OpDef = {
  name: "Gemm",
  infer: ([a, b, c], attrs) => {
    const [m, k] = attrs.transA ? [a.shape[1], a.shape[0]] : [a.shape[0], a.shape[1]];
    const [kb, n] = attrs.transB ? [b.shape[1], b.shape[0]] : [b.shape[0], b.shape[1]];
    if (a.rank !== 2 || b.rank !== 2 || k !== kb)
      throw new Error(`Gemm: inner dimensions of ${typeText(a)} and ${typeText(b)} differ`);
    if (c && (c.rank !== 1 || c.shape[0] !== n)) throw new Error(`Gemm: bias ${typeText(c)} is not [${n}]`);
    return { dtype: a.dtype, shape: [m, n] };
  },
  grad: (dy, { inputs: [a, b, c], attrs }) => {
    const { transA = false, transB = false } = attrs as GemmOptions;
    return [
      transA ? gemm(b, dy, { transA: transB, transB: true }) : gemm(dy, b, { transB: !transB }),
      transB ? gemm(dy, a, { transA: true, transB: transA }) : gemm(a, dy, { transA: !transA }),
      c && dy.sum([0]),
    ];
  },
  flops: (y) => sizeDim([2, ...y.shape, y.inputs[0].shape[y.attrs.transA ? 0 : 1]]),
  onnx: (emit, inputs, y) =>
    emit.node("Gemm", inputs, { transA: y.attrs.transA ? 1 : 0, transB: y.attrs.transB ? 1 : 0 }),
};

interface GemmOptions {
  transA?: boolean;
  transB?: boolean;
  /** [N] */
  bias?: Value;
}

/** op(a)·op(b) + bias over matrices, where op transposes on request. */
export function gemm(a: Value, b: Value, { transA = false, transB = false, bias }: GemmOptions = {}): Value {
  return apply(gemmOp, bias ? [a, b, bias] : [a, b], { transA, transB });
}

/** Keeps leading symbolic dimensions without computing shapes at run time; not differentiable. */
const projectOp: OpDef = {
  name: "Project",
  infer: ([x, w]) => ({ dtype: x.dtype, shape: [...x.shape.slice(0, -1), w.shape[0]] }),
  flops: (y) => sizeDim([2, ...y.shape, y.inputs[1].shape[1]]),
  int8: {
    axes: [1, 0],
    rotation,
    product: ({ inputs: [x, w, b] }, matrix, scale) => {
      const block = rotation(w.shape as number[]);
      return projectInt8(block ? rotate(x, block) : x, matrix, scale, b);
    },
  },
  onnx: (emit, [x, w, b]) => {
    const [t] = emit.node("Transpose", [w], { perm: [1, 0] });
    const [y] = emit.node("MatMul", [x, t]);
    return b ? emit.node("Add", [y, b]) : [y];
  },
};

/** x·wᵀ + b over the last axis. x [..., in], w [out, in], b [out] → [..., out]. */
export function project(x: Value, w: Value, bias?: Value): Value {
  if (x.shape[x.rank - 1] !== w.shape[1])
    throw new Error(`weight ${typeText(w)} needs ${w.shape[1]} input features, x is ${typeText(x)}`);
  if (!isStatic(x.shape)) return apply(projectOp, bias ? [x, w, bias] : [x, w]);
  const rows = x.reshape([sizeDim(x.shape.slice(0, -1)), x.shape[x.rank - 1]]);
  return gemm(rows, w, { transB: true, bias }).reshape([...x.shape.slice(0, -1), w.shape[0]]);
}

const tokenOp: OpDef = {
  name: "GatherTokens",
  infer: ([x]) => ({ dtype: x.dtype, shape: [x.shape[0], x.shape[2]] }),
  grad: (dy, { inputs: [x, index] }) => [
    apply(scatterTokenOp, [dy, index], { tokens: x.shape[1] }),
    undefined,
  ],
  onnx: (emit, [x, index]) => {
    const [at] = emit.node("Unsqueeze", [index, emit.constant(ints([1], [1]))]);
    return emit.node("GatherND", [x, at], { batch_dims: 1 });
  },
};

/** Puts row b of `x` at token index[b] of a zero sequence. */
const scatterTokenOp: OpDef = {
  name: "ScatterTokens",
  infer: ([x], attrs) => ({ dtype: x.dtype, shape: [x.shape[0], attrs.tokens as number, x.shape[1]] }),
  onnx: (emit, [x, index], y) => {
    const one = emit.constant(ints([1], [1]));
    const depth = emit.constant(ints([1], [y.shape[1] as number]));
    const values = emit.constant({ dtype: "float32", shape: [2], data: Float32Array.of(0, 1) });
    const [hot] = emit.node("OneHot", [index, depth, values], { axis: -1 });
    const [column] = emit.node("Unsqueeze", [hot, emit.constant(ints([1], [2]))]);
    const [row] = emit.node("Unsqueeze", [x, one]);
    return emit.node("Mul", [column, row]);
  },
};

/** One token of each sequence: x [B,T,D], index int64 [B] → [B,D]. */
export function gatherTokens(x: Value, index: Value): Value {
  return apply(tokenOp, [x, index]);
}

export const matmulMethods = {
  matmul(this: Value, other: Value): Value {
    return apply(matmulOp, [this, other]);
  },
};
