/** @file Elementwise operators, with NumPy broadcasting. */

import {
  apply,
  constant,
  type Dim,
  type OpDef,
  type Shape,
  type TypeInfo,
  typeText,
  type Value,
} from "../graph/index.ts";
import { castTensor, DTYPES, type DType, floats } from "../tensor/index.ts";

/** Shape of an elementwise result. @throws when two dimensions differ and neither is 1. */
export function broadcast(name: string, ...shapes: Shape[]): Dim[] {
  const rank = Math.max(...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, axis) => {
    let dim: Dim = 1;
    for (const s of shapes) {
      const d = s[axis - rank + s.length] ?? 1;
      if (d === 1 || d === dim) continue;
      if (dim !== 1)
        throw new Error(`${name}: shapes ${shapes.map((x) => `[${x}]`).join(" and ")} do not broadcast`);
      dim = d;
    }
    return dim;
  });
}

/** A number as a constant of a value's type. */
export function scalar(x: number, dtype: DType): Value {
  return constant(castTensor(floats([], [x]), dtype));
}

function lift(x: Value | number, like: Value): Value {
  return typeof x === "number" ? scalar(x, like.dtype) : x;
}

type Grad = OpDef["grad"];

function binary(name: string, grad?: Grad, result?: DType): OpDef {
  return {
    name,
    infer: ([a, b]): TypeInfo => {
      if (a.dtype !== b.dtype)
        throw new Error(`${name}: operands must have one type, got ${typeText(a)} and ${typeText(b)}`);
      return { dtype: result ?? a.dtype, shape: broadcast(name, a.shape, b.shape) };
    },
    grad,
    onnx: (emit, inputs) => emit.node(name, inputs),
  };
}

function unary(name: string, grad?: Grad): OpDef {
  return {
    name,
    infer: ([x]) => ({ dtype: x.dtype, shape: x.shape }),
    grad,
    onnx: (emit, inputs) => emit.node(name, inputs),
  };
}

const addOp = binary("Add", (dy) => [dy, dy]);
const subOp = binary("Sub", (dy) => [dy, dy.neg()]);
const mulOp = binary("Mul", (dy, { inputs: [a, b] }) => [dy.mul(b), dy.mul(a)]);
// d(a/b) = da/b − a/b² db
const divOp = binary("Div", (dy, y) => [dy.div(y.inputs[1]), dy.mul(y).div(y.inputs[1]).neg()]);
const maxOp = binary("Max", (dy, { inputs: [a, b] }) => [
  where(less(a, b), scalar(0, dy.dtype), dy),
  where(less(a, b), dy, scalar(0, dy.dtype)),
]);
const minOp = binary("Min", (dy, { inputs: [a, b] }) => [
  where(less(b, a), scalar(0, dy.dtype), dy),
  where(less(b, a), dy, scalar(0, dy.dtype)),
]);
const lessOp = binary("Less", undefined, "bool");
const equalOp = binary("Equal", undefined, "bool");

const powOp: OpDef = {
  name: "Pow",
  infer: ([x]) => ({ dtype: x.dtype, shape: x.shape }),
  // d(xⁿ) = n·xⁿ⁻¹ dx
  grad: (dy, { inputs: [x], attrs }) => {
    const n = attrs.exponent as number;
    return [dy.mul(n === 2 ? x : x.pow(n - 1)).mul(n)];
  },
  onnx: (emit, [x], y) => {
    const n = y.attrs.exponent as number;
    if (n === 2) return emit.node("Mul", [x, x]);
    return emit.node("Pow", [x, emit.constant(castTensor(floats([], [n]), y.dtype))]);
  },
};

const negOp = unary("Neg", (dy) => [dy.neg()]);
const absOp = unary("Abs", (dy, { inputs: [x] }) => [dy.mul(apply(signOp, [x]))]);
const signOp = unary("Sign");
const sqrtOp = unary("Sqrt", (dy, y) => [dy.div(y).mul(0.5)]);
const expOp = unary("Exp", (dy, y) => [dy.mul(y)]);
const logOp = unary("Log", (dy, { inputs: [x] }) => [dy.div(x)]);
const tanhOp = unary("Tanh", (dy, y) => [dy.sub(dy.mul(y).mul(y))]);
const sigmoidOp = unary("Sigmoid", (dy, y) => [dy.mul(y.sub(y.mul(y)))]);
const sinOp = unary("Sin", (dy, { inputs: [x] }) => [dy.mul(x.cos())]);
const cosOp = unary("Cos", (dy, { inputs: [x] }) => [dy.mul(x.sin()).neg()]);
// d(erf x) = 2/√π · exp(−x²) dx
const erfOp = unary("Erf", (dy, { inputs: [x] }) => [
  dy.mul(x.mul(x).neg().exp()).mul(2 / Math.sqrt(Math.PI)),
]);
const reluOp = unary("Relu", (dy, y) => [where(less(scalar(0, y.dtype), y), dy, scalar(0, dy.dtype))]);

const castOp: OpDef = {
  name: "Cast",
  infer: ([x], attrs) => ({ dtype: attrs.to as DType, shape: x.shape }),
  grad: (dy, { inputs: [x] }) => [dy.cast(x.dtype)],
  onnx: (emit, inputs, y) => emit.node("Cast", inputs, { to: DTYPES[y.dtype].onnx }),
};

const whereOp: OpDef = {
  name: "Where",
  infer: ([c, a, b]) => {
    if (c.dtype !== "bool") throw new Error(`Where: the condition must be bool, got ${typeText(c)}`);
    return { dtype: a.dtype, shape: broadcast("Where", c.shape, a.shape, b.shape) };
  },
  grad: (dy, { inputs: [c] }) => [
    undefined,
    where(c, dy, scalar(0, dy.dtype)),
    where(c, scalar(0, dy.dtype), dy),
  ],
  onnx: (emit, inputs) => emit.node("Where", inputs),
};

/** condition ? a : b, elementwise. */
export function where(condition: Value, a: Value, b: Value): Value {
  return apply(whereOp, [condition, a, b]);
}
/** a < b */
export function less(a: Value, b: Value | number): Value {
  return apply(lessOp, [a, lift(b, a)]);
}
/** a = b */
export function equal(a: Value, b: Value | number): Value {
  return apply(equalOp, [a, lift(b, a)]);
}
/** max(x, 0) */
export function relu(x: Value): Value {
  return apply(reluOp, [x]);
}

export const elementwiseMethods = {
  add(this: Value, other: Value | number): Value {
    return apply(addOp, [this, lift(other, this)]);
  },
  sub(this: Value, other: Value | number): Value {
    return apply(subOp, [this, lift(other, this)]);
  },
  mul(this: Value, other: Value | number): Value {
    return other === 1 ? this : apply(mulOp, [this, lift(other, this)]);
  },
  div(this: Value, other: Value | number): Value {
    return apply(divOp, [this, lift(other, this)]);
  },
  maximum(this: Value, other: Value | number): Value {
    return apply(maxOp, [this, lift(other, this)]);
  },
  minimum(this: Value, other: Value | number): Value {
    return apply(minOp, [this, lift(other, this)]);
  },
  pow(this: Value, exponent: number): Value {
    return apply(powOp, [this], { exponent });
  },
  neg(this: Value): Value {
    return apply(negOp, [this]);
  },
  abs(this: Value): Value {
    return apply(absOp, [this]);
  },
  sqrt(this: Value): Value {
    return apply(sqrtOp, [this]);
  },
  exp(this: Value): Value {
    return apply(expOp, [this]);
  },
  log(this: Value): Value {
    return apply(logOp, [this]);
  },
  tanh(this: Value): Value {
    return apply(tanhOp, [this]);
  },
  sigmoid(this: Value): Value {
    return apply(sigmoidOp, [this]);
  },
  sin(this: Value): Value {
    return apply(sinOp, [this]);
  },
  cos(this: Value): Value {
    return apply(cosOp, [this]);
  },
  erf(this: Value): Value {
    return apply(erfOp, [this]);
  },
  cast(this: Value, dtype: DType): Value {
    return this.dtype === dtype ? this : apply(castOp, [this], { to: dtype });
  },
};
