/** @file Graph → ONNX model. Every operator lowers itself; this file names values and writes the protobuf. */

import {
  type Dim,
  dimTerms,
  type Emit,
  type Graph,
  isConstant,
  isInput,
  isOutput,
  isParameter,
  isStatic,
  nameOf,
  type OnnxAttr,
  type Shape,
  type SymDim,
  symbol,
  topological,
  type Value,
} from "../graph/index.ts";
import { DTYPES, type DType, type HostTensor, ints } from "../tensor/index.ts";
import { ProtoWriter } from "./proto.ts";

/** Where a parameter's bytes lie: ONNX Runtime reads them in place. */
export interface ExternalTensor {
  /** As ONNX Runtime resolves it: relative to the working directory, or a key of `externalData`. */
  location: string;
  offset: number;
  bytes: number;
  /** Stored type; a cast to the graph's type is added when it differs. */
  dtype: DType;
  shape: readonly number[];
}

export interface EmitOptions {
  /** Parameters with fixed values. The others become inputs of the model, under their own names. */
  weights?: ReadonlyMap<string, HostTensor | ExternalTensor>;
  /**
   * What a lookup takes of a weight that is stored in another type is cast after it, and the weight never as a whole. Not
   * every GPU looks up in float16. Default false.
   */
  castsLate?: boolean;
}

const OPSET = 21;

/**
 * The model as bytes of an ONNX `ModelProto`: inputs and parameters keep their names, outputs take those of
 * the graph.
 */
export function emitOnnx(g: Graph, options: EmitOptions = {}): Uint8Array {
  const names = new Map<Value, string[]>();
  const writer = new Emitter(names);
  // Inputs first: a shape may be read off one that its value does not depend on.
  const order = topological(Object.values(g.outputs));
  for (const v of [...order.filter(isInput), ...order.filter((v) => !isInput(v))]) {
    const results = lower(v, writer, names, options);
    names.set(v, results);
    writer.describe(results[0], v);
  }
  const leaf = new Map(order.filter((v) => isInput(v) || isParameter(v)).map((v) => [nameOf(v), v.op.name]));
  for (const [name, v] of Object.entries(g.outputs)) {
    if (leaf.has(name))
      throw new Error(
        `output ${name} is called like the ${leaf.get(name)!.toLowerCase()} ${name}; rename one`,
      );
    writer.output(name, operand(v, writer, names, options));
  }
  const body = writer.finish();
  for (const [name, v] of Object.entries(g.outputs)) body.message(12, valueInfo(name, v.dtype, v.shape));
  const model = new ProtoWriter().int(1, 10).string(2, "fewstep").message(7, body);
  model.message(8, new ProtoWriter().string(1, "").int(2, OPSET));
  model.message(8, new ProtoWriter().string(1, "com.microsoft").int(2, 1));
  return model.finish();
}

function lower(v: Value, emit: Emitter, names: ReadonlyMap<Value, string[]>, options: EmitOptions): string[] {
  if (isConstant(v)) return [emit.constant(v.attrs.value as HostTensor)];
  if (isOutput(v)) return [names.get(v.inputs[0])![v.attrs.index as number]];
  const weight = isParameter(v) && options.weights?.get(nameOf(v));
  if (weight) return [emit.initializer(nameOf(v), weight)];
  if (isInput(v) || isParameter(v)) {
    emit.declareInput(v);
    return [nameOf(v)];
  }
  const late = options.castsLate && v.op.selects && canSelect(v.inputs[0], options);
  const operands = v.inputs.map((x, i) =>
    late && i === 0 ? names.get(x)![0] : operand(x, emit, names, options),
  );
  emit.within(v);
  const results = v.op.onnx(emit, operands, v);
  return late ? [emit.cast(results[0], v.dtype)] : results;
}

/** A value as operators take it: a weight that is stored in another type is cast where it is first needed. */
function operand(v: Value, emit: Emitter, names: ReadonlyMap<Value, string[]>, options: EmitOptions): string {
  const [name] = names.get(v)!;
  return isStoredOtherwise(v, options) ? emit.cast(name, v.dtype) : name;
}

function isStoredOtherwise(v: Value, options: EmitOptions): boolean {
  return storedType(v, options) !== v.dtype;
}

/** Whether lookups take a weight as it is stored, and not in its own type: those of ONNX know no 8-bit floats. */
function canSelect(v: Value, options: EmitOptions): boolean {
  return isStoredOtherwise(v, options) && !storedType(v, options).startsWith("float8");
}

function storedType(v: Value, { weights }: EmitOptions): DType {
  return (isParameter(v) && weights?.get(nameOf(v))?.dtype) || v.dtype;
}

interface OnnxNode {
  label: string;
  type: string;
  domain: string;
  inputs: readonly string[];
  outputs: string[];
  attrs: Readonly<Record<string, OnnxAttr>>;
}

/**
 * Nodes from which on results are described. ONNX Runtime infers types and shapes itself, but those of symbolic
 * dimensions in part only, and its memory planner compares each such result with all before it: seconds for a UNet.
 * Smaller graphs are better off without, as results of one shape share memory that stays taken between them.
 */
const MANY_NODES = 4096;

/** A result of a node, as the emitter calls it. */
const RESULT = /^%v\d+$/;

/** Names that it makes up start with %, so that they differ from those of inputs and parameters. */
class Emitter implements Emit {
  private readonly body = new ProtoWriter().string(2, "fewstep");
  private readonly nodes: OnnxNode[] = [];
  private readonly names: ReadonlyMap<Value, string[]>;
  private readonly constants = new Map<string, string>();
  private readonly dims = new Map<Dim, string>();
  private readonly casts = new Map<string, string>();
  private readonly renamed = new Map<string, string>();
  private readonly described = new Map<string, Value>();
  private count = 0;
  private label = "";

  constructor(names: ReadonlyMap<Value, string[]>) {
    this.names = names;
  }

  within(v: Value): void {
    this.label = `${v.op.name}_${v.id}`;
  }

  declareInput(v: Value): void {
    this.body.message(11, valueInfo(nameOf(v), v.dtype, v.shape));
  }

  node(
    type: string,
    inputs: readonly string[],
    attrs: Readonly<Record<string, OnnxAttr>> = {},
    { outputs = 1, domain = "" }: { outputs?: number; domain?: string } = {},
  ): string[] {
    const results = Array.from({ length: outputs }, () => `%v${this.count++}`);
    this.nodes.push({ label: this.label, type, domain, inputs, outputs: results, attrs });
    return results;
  }

  /** As another type; the same node for all who ask. */
  cast(name: string, dtype: DType): string {
    const key = `${dtype} ${name}`;
    const known = this.casts.get(key);
    if (known) return known;
    const [result] = this.node("Cast", [name], { to: DTYPES[dtype].onnx });
    this.casts.set(key, result);
    return result;
  }

  /** States type and shape of a result, for graphs of many nodes. */
  describe(name: string, v: Value): void {
    if (RESULT.test(name)) this.described.set(name, v);
  }

  /** Gives a result its public name; a copy is added only where the tensor already has one. */
  output(name: string, from: string): void {
    const produced = RESULT.test(from) && !this.renamed.has(from);
    if (produced) this.renamed.set(from, name);
    else {
      const [copy] = this.node("Identity", [from]);
      this.renamed.set(copy, name);
    }
  }

  /** The graph so far as a `GraphProto`. */
  finish(): ProtoWriter {
    const rename = (name: string) => this.renamed.get(name) ?? name;
    this.nodes.forEach((n, i) => {
      const node = new ProtoWriter();
      for (const x of n.inputs) node.string(1, rename(x));
      for (const x of n.outputs) node.string(2, rename(x));
      node.string(3, `${n.label}/${n.type}_${i}`).string(4, n.type);
      for (const [name, a] of Object.entries(n.attrs)) node.message(5, attribute(name, a));
      if (n.domain) node.string(7, n.domain);
      this.body.message(1, node);
    });
    if (this.nodes.length >= MANY_NODES)
      for (const [name, { dtype, shape }] of this.described)
        if (!this.renamed.has(name)) this.body.message(13, valueInfo(name, dtype, shape));
    return this.body;
  }

  constant(value: HostTensor): string {
    const small = value.data.length <= 64;
    const key = small
      ? `${value.dtype}[${value.shape}]${Array.from<number | bigint, string>(value.data, (x) => (Object.is(x, -0) ? "-0" : `${x}`))}`
      : "";
    const known = small && this.constants.get(key);
    if (known) return known;
    const name = `%c${this.count++}`;
    if (small) this.constants.set(key, name);
    return this.initializer(name, value);
  }

  initializer(name: string, value: HostTensor | ExternalTensor): string {
    const t = new ProtoWriter();
    for (const d of value.shape) t.int(1, d);
    t.int(2, DTYPES[value.dtype].onnx).string(8, name);
    if ("data" in value)
      t.bytes(9, new Uint8Array(value.data.buffer, value.data.byteOffset, value.data.byteLength));
    else {
      for (const [k, v] of [
        ["location", value.location],
        ["offset", value.offset],
        ["length", value.bytes],
      ] as const)
        t.message(13, new ProtoWriter().string(1, k).string(2, String(v)));
      t.int(14, 1); // DataLocation.EXTERNAL
    }
    this.body.message(5, t);
    return name;
  }

  shape(dims: Shape): string {
    if (isStatic(dims)) return this.constant(ints([dims.length], dims));
    return this.node(
      "Concat",
      dims.map((d) => this.dim(d)),
      { axis: 0 },
    )[0];
  }

  /** A dimension as an int64 vector of one element. */
  private dim(d: Dim): string {
    if (typeof d === "number") return this.constant(ints([1], [d]));
    let name = this.dims.get(d);
    if (!name) {
      name = this.computeDim(d);
      this.dims.set(d, name);
    }
    return name;
  }

  private computeDim(d: SymDim): string {
    const direct = this.findDim(d);
    if (direct) return direct;
    const terms = dimTerms(d).map(({ coefficient, factors }) =>
      factors
        .map((f) => {
          if (!("symbol" in f)) return this.node("Div", [this.dim(f.floor), this.dim(f.by)])[0];
          const named = symbol(f.symbol);
          if (named === d) throw new Error(`no input of the graph has the dimension ${f.symbol}`);
          return this.dim(named);
        })
        .reduce((a, b) => this.node("Mul", [a, b])[0], this.dim(coefficient)),
    );
    return terms.reduce((a, b) => this.node("Add", [a, b])[0]);
  }

  /** The dimension read off an input that has it. */
  private findDim(d: SymDim): string | undefined {
    for (const [v, [name]] of this.names) {
      if (!isInput(v)) continue;
      const axis = v.shape.indexOf(d);
      if (axis < 0) continue;
      const [all] = this.node("Shape", [name]);
      return this.node("Gather", [all, this.constant(ints([1], [axis]))], { axis: 0 })[0];
    }
    return undefined;
  }
}

function attribute(name: string, a: OnnxAttr): ProtoWriter {
  const w = new ProtoWriter().string(1, name);
  if (typeof a === "number") return w.int(3, a).int(20, 2);
  if (typeof a === "string") return w.string(4, a).int(20, 3);
  if ("float" in a) return w.float(2, a.float).int(20, 1);
  for (const x of a) w.int(8, x);
  return w.int(20, 7);
}

function valueInfo(name: string, dtype: DType, shape: Shape): ProtoWriter {
  const dims = new ProtoWriter();
  for (const d of shape)
    dims.message(
      1,
      typeof d === "number" ? new ProtoWriter().int(1, d) : new ProtoWriter().string(2, String(d)),
    );
  const tensorType = new ProtoWriter().int(1, DTYPES[dtype].onnx).message(2, dims);
  return new ProtoWriter().string(1, name).message(2, new ProtoWriter().message(1, tensorType));
}
