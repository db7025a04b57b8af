/** @file The node of a graph: immutable, hash-consed, and holding its operator's definition. */

import type { DType, HostTensor } from "../tensor/index.ts";
import { type Dim, type Shape, SymDim } from "./dim.ts";

/** How a parameter is filled when training starts. */
export type Init =
  | { kind: "normal"; std: number }
  | { kind: "uniform"; bound: number }
  | { kind: "constant"; value: number };

export type Attr = Dim | string | boolean | readonly Dim[] | HostTensor | Init | undefined;
export type Attrs = Readonly<Record<string, Attr>>;

export interface TypeInfo {
  dtype: DType;
  shape: Shape;
}

/** What an operator's ONNX lowering may call; implemented by the emitter. */
export interface Emit {
  /** Adds a node and returns its output names. Float attributes are given as `{ float: x }`. */
  node(
    type: string,
    inputs: readonly string[],
    attrs?: Readonly<Record<string, OnnxAttr>>,
    options?: { outputs?: number; domain?: string },
  ): string[];
  /** A constant tensor's name. */
  constant(value: HostTensor): string;
  /** Name of an int64 vector that holds a shape, computed at run time where dimensions are symbolic. */
  shape(dims: Shape): string;
}

export type OnnxAttr = number | string | readonly number[] | { float: number };

/** How a product is done on int8 weights, each output channel with a scale of its own. */
export interface Int8Product {
  /** Order of the weight's axes in which it becomes the matrix [inner, out] that the kernel takes. */
  readonly axes: readonly number[];
  /** Width of the blocks in which input and weight (of this shape) are rotated before they are quantised; default none. */
  rotation?(weight: readonly number[]): number | undefined;
  /** What stands in for the product `y`. matrix int8 [inner, out], scale [out]. */
  product(y: Value, matrix: Value, scale: Value): Value;
}

/**
 * One operator: type rule, gradient and ONNX lowering in one entry. Passes never branch on operators;
 * what they need to know is a field here.
 */
export interface OpDef {
  /** ONNX operator name where there is one. */
  readonly name: string;
  /** Types of the outputs, the main one first. Throws one sentence when the inputs do not fit. */
  infer(inputs: readonly Value[], attrs: Attrs): TypeInfo | TypeInfo[];
  /**
   * Gradients with respect to the inputs, given the gradient `dy` of the main output; undefined where there
   * is none. Un-broadcasting, accumulation and pruning are the walker's job. Absent: not differentiable.
   */
  grad?(dy: Value, y: Value): (Value | undefined)[];
  /** Names of the outputs. */
  onnx(emit: Emit, inputs: readonly string[], y: Value): string[];
  /** Multiplications and additions of a product; absent for cheap operators. */
  flops?(y: Value): Dim;
  /** Bytes beside inputs and outputs while it runs, where they count. */
  scratch?(y: Value): Dim;
  /** The main output has elements of the first input as they are. */
  readonly selects?: boolean;
  /** A product of x, w [out, ...] and perhaps b [out], whose weight may be int8 instead. */
  readonly int8?: Int8Product;
  /** Leaves (inputs, parameters, constants) have no inputs and are known by name or content. */
  readonly leaf?: boolean;
}

/** Arithmetic and movement, installed on every value by `ops`. Numbers are constants of the value's type. */
export interface ValueMethods {
  add(other: Value | number): Value;
  sub(other: Value | number): Value;
  mul(other: Value | number): Value;
  div(other: Value | number): Value;
  /** Elementwise power with a constant exponent. */
  pow(exponent: number): Value;
  maximum(other: Value | number): Value;
  minimum(other: Value | number): Value;
  neg(): Value;
  abs(): Value;
  sqrt(): Value;
  exp(): Value;
  log(): Value;
  tanh(): Value;
  sigmoid(): Value;
  sin(): Value;
  cos(): Value;
  erf(): Value;
  cast(dtype: DType): Value;
  /** One dimension may be -1. */
  reshape(dims: readonly Dim[]): Value;
  transpose(perm: readonly number[]): Value;
  expand(shape: Shape): Value;
  /** Elements start, start+step, … before end along one axis; negative positions count from the end. */
  slice(axis: number, start: number, end: number, step?: number): Value;
  pad(axis: number, before: number, after: number): Value;
  unsqueeze(...axes: number[]): Value;
  squeeze(...axes: number[]): Value;
  sum(axes?: readonly number[], keepdims?: boolean): Value;
  mean(axes?: readonly number[], keepdims?: boolean): Value;
  max(axes?: readonly number[], keepdims?: boolean): Value;
  matmul(other: Value): Value;
  softmax(axis?: number): Value;
}

let nextId = 0;

export interface Value extends ValueMethods {}

// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: `ops` installs the methods; `graph` may not import them.
export class Value {
  readonly id: number = nextId++;
  readonly op: OpDef;
  readonly inputs: readonly Value[];
  readonly attrs: Attrs;
  readonly dtype: DType;
  readonly shape: Shape;
  /** Types of all outputs; `output(v, i)` selects one. */
  readonly outputs: readonly TypeInfo[];

  constructor(op: OpDef, inputs: readonly Value[], attrs: Attrs, outputs: readonly TypeInfo[]) {
    this.op = op;
    this.inputs = inputs;
    this.attrs = attrs;
    this.outputs = outputs;
    this.dtype = outputs[0].dtype;
    this.shape = outputs[0].shape;
    Object.freeze(this);
  }

  get rank(): number {
    return this.shape.length;
  }
}

const cache = new Map<string, WeakRef<Value>>();
const finalizer = new FinalizationRegistry((key: string) => {
  if (cache.get(key)?.deref() === undefined) cache.delete(key);
});
const identities = new WeakMap<object, number>();
let nextIdentity = 0;

function identity(x: object): string {
  let id = identities.get(x);
  if (id === undefined) {
    id = nextIdentity++;
    identities.set(x, id);
  }
  return `#${id}`;
}

function attrKey(a: Attr): string {
  if (Array.isArray(a)) return `[${a.join(",")}]`;
  if (a !== null && typeof a === "object" && "data" in a) {
    const t = a as HostTensor;
    // Small constants are equal by content, large ones by identity.
    return t.data.length <= 64 ? `${t.dtype}[${t.shape}]{${Array.from(t.data, contentKey)}}` : identity(t);
  }
  if (a instanceof SymDim) return String(a);
  return typeof a === "object" ? JSON.stringify(a) : String(a);
}

function contentKey(x: number | bigint): string {
  return Object.is(x, -0) ? "-0" : String(x);
}

/** The node that applies `op`; the same node again for the same op, inputs and attributes. */
export function apply(op: OpDef, inputs: readonly Value[], attrs: Attrs = {}): Value {
  const attrText = Object.entries(attrs)
    .map(([k, a]) => `${k}=${attrKey(a)}`)
    .join(";");
  const key = `${op.name}${identity(op)}(${inputs.map((v) => v.id)})${attrText}`;
  const found = cache.get(key)?.deref();
  if (found) return found;
  const types = op.infer(inputs, attrs);
  const value = new Value(op, Object.freeze([...inputs]), attrs, Array.isArray(types) ? types : [types]);
  cache.set(key, new WeakRef(value));
  finalizer.register(value, key);
  return value;
}

/** A further output of a node with several, e.g. the mean that LayerNormalization also returns. */
export function output(node: Value, index: number): Value {
  return index === 0 ? node : apply(outputOp, [node], { index });
}

const outputOp: OpDef = {
  name: "Output",
  infer: ([node], attrs) => node.outputs[attrs.index as number],
  onnx: () => {
    throw new Error("Output is resolved by the emitter");
  },
};

export function isOutput(v: Value): boolean {
  return v.op === outputOp;
}

function leaf(name: string): OpDef {
  return {
    name,
    leaf: true,
    infer: (_, attrs) => ({ dtype: attrs.dtype as DType, shape: attrs.shape as Shape }),
    onnx: () => {
      throw new Error(`${name} is resolved by the emitter`);
    },
  };
}

const inputOp = leaf("Input");
const parameterOp = leaf("Parameter");
const constantOp: OpDef = {
  ...leaf("Constant"),
  infer: (_, attrs) => {
    const value = attrs.value as HostTensor;
    return { dtype: value.dtype, shape: value.shape };
  },
};

/** A tensor given at every run. */
export function input(name: string, dtype: DType, shape: Shape): Value {
  return apply(inputOp, [], { name, dtype, shape });
}

/** A trained tensor, known by its checkpoint key; or what is derived from one, int8 weights for example. */
export function parameter(
  name: string,
  shape: readonly number[],
  init: Init,
  dtype: DType = "float32",
): Value {
  return apply(parameterOp, [], { name, dtype, shape, init });
}

export function constant(value: HostTensor): Value {
  return apply(constantOp, [], { value });
}

export function isInput(v: Value): boolean {
  return v.op === inputOp;
}
export function isParameter(v: Value): boolean {
  return v.op === parameterOp;
}
export function isConstant(v: Value): boolean {
  return v.op === constantOp;
}
/** Name of an input or parameter. */
export function nameOf(v: Value): string {
  return v.attrs.name as string;
}
