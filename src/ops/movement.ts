/** @file Operators that move elements. Slice and pad, gather and scatter are each other's gradients. */

import {
  addDim,
  apply,
  type Dim,
  divideDim,
  type OpDef,
  type Shape,
  sizeDim,
  typeText,
  type Value,
} from "../graph/index.ts";
import { ints } from "../tensor/index.ts";
import { broadcast } from "./elementwise.ts";

const reshapeOp: OpDef = {
  name: "Reshape",
  infer: ([x], attrs) => {
    const shape = attrs.shape as Shape;
    if (sizeDim(shape) !== sizeDim(x.shape))
      throw new Error(`Reshape: ${typeText(x)} does not fit [${shape}]`);
    return { dtype: x.dtype, shape };
  },
  grad: (dy, { inputs: [x] }) => [dy.reshape(x.shape)],
  onnx: (emit, [x], y) => {
    const from = y.inputs[0].shape;
    const dims = y.shape.map((d, i) => (typeof d === "number" ? d : d === from[i] ? 0 : -1));
    const simple = dims.filter((d) => d === -1).length <= 1;
    return emit.node("Reshape", [x, simple ? emit.constant(ints([dims.length], dims)) : emit.shape(y.shape)]);
  },
};

const transposeOp: OpDef = {
  name: "Transpose",
  infer: ([x], attrs) => ({ dtype: x.dtype, shape: (attrs.perm as number[]).map((p) => x.shape[p]) }),
  grad: (dy, { attrs }) => {
    const perm = attrs.perm as number[];
    return [dy.transpose(perm.map((_, i) => perm.indexOf(i)))];
  },
  onnx: (emit, inputs, y) => emit.node("Transpose", inputs, { perm: y.attrs.perm as number[] }),
};

const expandOp: OpDef = {
  name: "Expand",
  infer: ([x], attrs) => ({ dtype: x.dtype, shape: broadcast("Expand", x.shape, attrs.shape as Shape) }),
  grad: (dy) => [dy],
  onnx: (emit, [x], y) => emit.node("Expand", [x, emit.shape(y.shape)]),
};

const sliceOp: OpDef = {
  name: "Slice",
  infer: ([x], attrs) => {
    const { axis, start, end, step } = attrs as { axis: number; start: number; end: number; step: number };
    const dim = x.shape[axis];
    const shape = [...x.shape];
    if (typeof dim === "number") {
      // `start` and `end` are already within [0, dim]; a negative step runs down to and without `end`.
      shape[axis] = Math.max(0, Math.ceil((end - start) / step));
    } else shape[axis] = sliceSymbolic(dim, start, end, step);
    return { dtype: x.dtype, shape };
  },
  grad: (dy, { inputs: [x], attrs }) => {
    const { axis, start, step } = attrs as { axis: number; start: number; step: number };
    const dim = x.shape[axis] as number;
    if (step < 0) {
      if (dy.shape[axis] !== dim)
        throw new Error("Slice: the gradient of a partial reversed slice is missing");
      return [dy.slice(axis, -1, -dim - 1, -1)];
    }
    const spread = step === 1 ? dy : dilate(dy, axis, step);
    const after = dim - start - (spread.shape[axis] as number);
    return [
      after < 0 ? spread.slice(axis, 0, dim - start).pad(axis, start, 0) : spread.pad(axis, start, after),
    ];
  },
  onnx: (emit, [x], y) => {
    const { axis, start, end, step } = y.attrs as { axis: number; start: number; end: number; step: number };
    const one = (v: number) => emit.constant(ints([1], [v]));
    // Running down through index 0 needs an end below -dim.
    const stop = step < 0 && end < 0 ? -(2 ** 31) : end;
    return emit.node("Slice", [x, one(start), one(stop), one(axis), one(step)]);
  },
};

/** Which rows of which value `v` is, when it is `slice(0, …)`. */
export function rowsOf(v: Value): { of: Value; from: number; to: number } | undefined {
  const { axis, start, end, step } = v.attrs as { axis: number; start: number; end: number; step: number };
  return v.op === sliceOp && axis === 0 && step === 1 ? { of: v.inputs[0], from: start, to: end } : undefined;
}

function sliceSymbolic(dim: Dim, start: number, end: number, step: number): Dim {
  if (step !== 1 || start < 0)
    throw new Error(`Slice: a symbolic dimension ${dim} takes start ≥ 0 and step 1`);
  if (end > 2 ** 30) return addDim(dim, -start);
  return end < 0 ? addDim(dim, end - start) : end - start;
}

/** Puts step−1 zeros after each element along an axis. */
function dilate(x: Value, axis: number, step: number): Value {
  const shape = [...x.shape];
  const spread = x.unsqueeze(axis + 1).pad(axis + 1, 0, step - 1);
  shape[axis] = (shape[axis] as number) * step;
  return spread.reshape(shape);
}

const padOp: OpDef = {
  name: "Pad",
  infer: ([x], attrs) => {
    const shape = [...x.shape];
    const axis = attrs.axis as number;
    shape[axis] = addDim(shape[axis], (attrs.before as number) + (attrs.after as number));
    return { dtype: x.dtype, shape };
  },
  grad: (dy, { inputs: [x], attrs }) => {
    const { axis, before } = attrs as { axis: number; before: number };
    return [dy.slice(axis, before, before + (x.shape[axis] as number))];
  },
  onnx: (emit, [x], y) => {
    const pads = new Array<number>(2 * y.rank).fill(0);
    pads[y.attrs.axis as number] = y.attrs.before as number;
    pads[y.rank + (y.attrs.axis as number)] = y.attrs.after as number;
    return emit.node("Pad", [x, emit.constant(ints([pads.length], pads))]);
  },
};

const concatOp: OpDef = {
  name: "Concat",
  infer: (values, attrs) => {
    const axis = attrs.axis as number;
    const shape = [...values[0].shape];
    for (const v of values.slice(1)) {
      if (v.rank !== shape.length || v.shape.some((d, i) => i !== axis && d !== shape[i]))
        throw new Error(`Concat: ${values.map(typeText).join(", ")} differ outside axis ${axis}`);
      shape[axis] = addDim(shape[axis], v.shape[axis]);
    }
    return { dtype: values[0].dtype, shape };
  },
  grad: (dy, { inputs, attrs }) => {
    const axis = attrs.axis as number;
    let start = 0;
    return inputs.map((v) => {
      const size = v.shape[axis] as number;
      start += size;
      return dy.slice(axis, start - size, start);
    });
  },
  onnx: (emit, inputs, y) => emit.node("Concat", inputs, { axis: y.attrs.axis as number }),
};

const gatherOp: OpDef = {
  name: "Gather",
  infer: ([data, indices], attrs) => {
    const axis = attrs.axis as number;
    return {
      dtype: data.dtype,
      shape: [...data.shape.slice(0, axis), ...indices.shape, ...data.shape.slice(axis + 1)],
    };
  },
  grad: (dy, { inputs: [data, indices], attrs }) => {
    if (attrs.axis !== 0) throw new Error("Gather: only axis 0 is differentiable");
    const rows = dy.reshape([-1, ...data.shape.slice(1)]);
    return [apply(scatterAddOp, [indices.reshape([-1, 1]), rows], { rows: data.shape[0] }), undefined];
  },
  onnx: (emit, inputs, y) => emit.node("Gather", inputs, { axis: y.attrs.axis as number }),
  selects: true,
};

/** Sums rows of `updates` into a zero tensor at the given row indices: the gradient of a lookup. */
const scatterAddOp: OpDef = {
  name: "ScatterAddRows",
  infer: ([, updates], attrs) => ({
    dtype: updates.dtype,
    shape: [attrs.rows as Dim, ...updates.shape.slice(1)],
  }),
  onnx: (emit, [indices, updates], y) => {
    const [zero] = emit.node("Expand", [
      emit.constant({ dtype: y.dtype, shape: [1], data: new Float32Array(1) }),
      emit.shape(y.shape),
    ]);
    return emit.node("ScatterND", [zero, indices, updates], { reduction: "add" });
  },
};

/** Nearest-neighbour upsampling. */
const upsampleOp: OpDef = {
  name: "Resize",
  infer: ([x], attrs) => ({
    dtype: x.dtype,
    shape: [x.shape[0], x.shape[1], ...(attrs.size as Shape)],
  }),
  grad: (dy, { inputs: [x] }) => {
    const [b, c, h, w] = x.shape as number[];
    const [, , H, W] = dy.shape as number[];
    const [m, n] = [Math.ceil(H / h), Math.ceil(W / w)];
    // Sizes one short of double repeat as the doubled ones do, less the last: floor(i·h/(2h − 1)) = floor(i/2).
    if ((m * h !== H && 2 * h - 1 !== H) || (n * w !== W && 2 * w - 1 !== W))
      throw new Error(`Resize: the gradient needs whole factors, got ${h}×${w} → ${H}×${W}`);
    const whole = dy.pad(2, 0, m * h - H).pad(3, 0, n * w - W);
    return [whole.reshape([b, c, h, m, w, n]).sum([3, 5])];
  },
  onnx: (emit, [x], y) =>
    emit.node("Resize", [x, "", "", emit.shape(y.shape)], {
      mode: "nearest",
      nearest_mode: "floor",
      coordinate_transformation_mode: "asymmetric",
    }),
};

/** Joins values along an axis. */
export function concat(values: readonly Value[], axis: number): Value {
  return values.length === 1
    ? values[0]
    : apply(concatOp, values, { axis: axis < 0 ? axis + values[0].rank : axis });
}

/** data[indices] along an axis (default 0); `indices` is int64 of any shape. */
export function gather(data: Value, indices: Value, axis = 0): Value {
  return apply(gatherOp, [data, indices], { axis });
}

/** [B,C,h,w] → [B,C,H,W] by nearest neighbour, index floor(i·h/H). */
export function resizeNearest(x: Value, size: readonly [Dim, Dim]): Value {
  return apply(upsampleOp, [x], { size });
}

export const movementMethods = {
  reshape(this: Value, dims: readonly Dim[]): Value {
    const unknown = dims.indexOf(-1);
    let shape: Dim[] = [...dims];
    if (unknown >= 0) {
      const known = sizeDim(dims.filter((_, i) => i !== unknown));
      const rest = divideDim(sizeDim(this.shape), known);
      if (rest === undefined) throw new Error(`Reshape: ${typeText(this)} does not fit [${dims}]`);
      shape = shape.with(unknown, rest);
    }
    return sameShape(shape, this.shape) ? this : apply(reshapeOp, [this], { shape });
  },
  transpose(this: Value, perm: readonly number[]): Value {
    if ([...perm].sort((a, b) => a - b).some((p, i) => p !== i) || perm.length !== this.rank)
      throw new Error(`Transpose: [${perm}] does not permute ${typeText(this)}`);
    return perm.every((p, i) => p === i) ? this : apply(transposeOp, [this], { perm });
  },
  expand(this: Value, shape: Shape): Value {
    return sameShape(shape, this.shape) ? this : apply(expandOp, [this], { shape });
  },
  slice(this: Value, axis: number, start: number, end: number, step = 1): Value {
    const a = axis < 0 ? axis + this.rank : axis;
    const dim = this.shape[a];
    if (typeof dim === "number") {
      const low = step < 0 ? -1 : 0;
      const clamp = (v: number) => Math.min(Math.max(v < 0 ? v + dim : v, low), step < 0 ? dim - 1 : dim);
      start = clamp(start);
      end = clamp(end);
      if (start === 0 && end === dim && step === 1) return this;
    }
    return apply(sliceOp, [this], { axis: a, start, end, step });
  },
  pad(this: Value, axis: number, before: number, after: number): Value {
    const a = axis < 0 ? axis + this.rank : axis;
    return before === 0 && after === 0 ? this : apply(padOp, [this], { axis: a, before, after });
  },
  unsqueeze(this: Value, ...axes: number[]): Value {
    const shape = [...this.shape];
    for (const a of [...axes].sort((x, y) => x - y)) shape.splice(a, 0, 1);
    return this.reshape(shape);
  },
  squeeze(this: Value, ...axes: number[]): Value {
    return this.reshape(this.shape.filter((_, i) => !axes.includes(i) && !axes.includes(i - this.rank)));
  },
};

function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((d, i) => d === b[i]);
}
