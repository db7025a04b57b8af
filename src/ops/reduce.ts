/** @file Reductions, and softmax, which is made of them. */

import { apply, type Dim, isStatic, type OpDef, sizeDim, type TypeInfo, type Value } from "../graph/index.ts";
import { floats, ints } from "../tensor/index.ts";
import { equal } from "./elementwise.ts";

function reduced({ dtype, shape }: TypeInfo, axes: readonly number[], keepdims: boolean): TypeInfo {
  const out: Dim[] = keepdims
    ? shape.map((d, i) => (axes.includes(i) ? 1 : d))
    : shape.filter((_, i) => !axes.includes(i));
  return { dtype, shape: out };
}

function reduction(name: string, grad: (dy: Value, y: Value) => Value): OpDef {
  return {
    name,
    infer: ([x], attrs) => reduced(x, attrs.axes as number[], attrs.keepdims as boolean),
    grad: (dy, y) => {
      const keep = reduced(y.inputs[0], y.attrs.axes as number[], true).shape;
      return [grad(dy.reshape(keep), y)];
    },
    onnx: (emit, [x], y) => {
      const axes = y.attrs.axes as number[];
      return emit.node(name, [x, emit.constant(ints([axes.length], axes))], {
        keepdims: y.attrs.keepdims ? 1 : 0,
      });
    },
  };
}

const plainSum = reduction("ReduceSum", (dy, { inputs: [x] }) => dy.expand(x.shape));
const sumOp: OpDef = {
  ...plainSum,
  onnx: (emit, [x], y) => {
    const { axes, keepdims } = y.attrs as { axes: number[]; keepdims: boolean };
    const { dtype, shape } = y.inputs[0];
    const leads = axes.length < shape.length && axes.every((a, i) => a === i);
    if (!leads || keepdims || dtype !== "float32" || !isStatic(shape)) return plainSum.onnx!(emit, [x], y);
    // Sums of columns, as of a bias gradient, are several times faster as a product with ones.
    const rows = sizeDim(shape.slice(0, axes.length)) as number;
    const [matrix] = emit.node("Reshape", [x, emit.shape([rows, sizeDim(y.shape)])]);
    const ones = emit.constant(floats([1, rows], new Float32Array(rows).fill(1)));
    const [sums] = emit.node("MatMul", [ones, matrix]);
    return emit.node("Reshape", [sums, emit.shape(y.shape)]);
  },
};
const meanOp = reduction("ReduceMean", (dy, y) => {
  const n = (sizeDim(y.inputs[0].shape) as number) / (sizeDim(y.shape) as number);
  return dy.div(n).expand(y.inputs[0].shape);
});
// Ties share the gradient.
const maxOp = reduction("ReduceMax", (dy, y) => {
  const [x] = y.inputs;
  const axes = y.attrs.axes as number[];
  const hit = equal(x, x.max(axes, true)).cast(x.dtype);
  return dy.mul(hit).div(hit.sum(axes, true));
});

const softmaxOp: OpDef = {
  name: "Softmax",
  infer: ([x]) => ({ dtype: x.dtype, shape: x.shape }),
  // dx = y·(dy − Σ dy·y)
  grad: (dy, y) => {
    const axis = [y.attrs.axis as number];
    const g = dy.mul(y);
    return [g.sub(y.mul(g.sum(axis, true)))];
  },
  onnx: (emit, inputs, y) => emit.node("Softmax", inputs, { axis: y.attrs.axis as number }),
};

const logSoftmaxOp: OpDef = {
  name: "LogSoftmax",
  infer: softmaxOp.infer,
  // dx = dy − softmax(x)·Σ dy
  grad: (dy, y) => [dy.sub(y.exp().mul(dy.sum([y.attrs.axis as number], true)))],
  onnx: (emit, inputs, y) => emit.node("LogSoftmax", inputs, { axis: y.attrs.axis as number }),
};

/** log softmax along an axis (default the last). */
export function logSoftmax(x: Value, axis = -1): Value {
  return apply(logSoftmaxOp, [x], { axis: axis < 0 ? axis + x.rank : axis });
}

function reduce(op: OpDef, x: Value, axes: readonly number[] | undefined, keepdims: boolean): Value {
  const all = (axes ?? x.shape.map((_, i) => i)).map((a) => (a < 0 ? a + x.rank : a));
  return all.length === 0 ? x : apply(op, [x], { axes: all, keepdims });
}

export const reduceMethods = {
  sum(this: Value, axes?: readonly number[], keepdims = false): Value {
    return reduce(sumOp, this, axes, keepdims);
  },
  mean(this: Value, axes?: readonly number[], keepdims = false): Value {
    return reduce(meanOp, this, axes, keepdims);
  },
  max(this: Value, axes?: readonly number[], keepdims = false): Value {
    return reduce(maxOp, this, axes, keepdims);
  },
  softmax(this: Value, axis = -1): Value {
    return apply(softmaxOp, [this], { axis: axis < 0 ? axis + this.rank : axis });
  },
};
