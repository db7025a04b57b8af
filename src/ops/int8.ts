/**
 * @file Products on int8 weights (W8A8): each output channel of a weight has a scale, activations are quantised to
 * uint8 while the network runs. They need kernels of ONNX Runtime's CPU provider and have no gradients.
 * B batch, K inner width, O outputs, k kernel.
 */

import {
  addDim,
  apply,
  constant,
  type Dim,
  type Emit,
  mulDim,
  type OpDef,
  output,
  type Shape,
  sizeDim,
  typeText,
  type Value,
} from "../graph/index.ts";
import { floats, type HostTensor, ints } from "../tensor/index.ts";

const CONTRIB = { domain: "com.microsoft" };
/** Largest quantised magnitude. Weights from −128 would leave no room for the sign's symmetry. */
const LEVELS = 127;
/** uint8 that stands for zero where the range is symmetric. */
const ZERO = 128;
/** Scale of rows that are all zero. */
const TINY = 2 ** -100;

const scalar = (x: number) => floats([], [x]);
const byte = (x: number): HostTensor => ({ dtype: "uint8", shape: [], data: Uint8Array.of(x) });

/** Rows in uint8 around 128, and scales: x ≈ (q − 128)·scale with scale = max |x| / 127 over the last axis. */
const quantizeRowsOp: OpDef = {
  name: "QuantizeRows",
  infer: ([x]) => [
    { dtype: "uint8", shape: x.shape },
    { dtype: "float32", shape: [...x.shape.slice(0, -1), 1] },
  ],
  onnx: (emit, [x]) => {
    const last = emit.constant(ints([1], [-1]));
    const [high] = emit.node("ReduceMax", [x, last], { keepdims: 1 });
    const [low] = emit.node("ReduceMin", [x, last], { keepdims: 1 });
    const [most] = emit.node("Max", [high, ...emit.node("Neg", [low]), emit.constant(scalar(TINY))]);
    const [scale] = emit.node("Mul", [most, emit.constant(scalar(1 / LEVELS))]);
    const [scaled] = emit.node("Div", [x, scale]);
    const [q] = emit.node("QuantizeLinear", [scaled, emit.constant(scalar(1)), emit.constant(byte(ZERO))]);
    return [q, scale];
  },
};

/** Inputs: rows, their scales, matrix, its scales, perhaps bias. */
const projectOp: OpDef = {
  name: "ProjectInt8",
  infer: ([q, , matrix]) => ({ dtype: "float32", shape: [...q.shape.slice(0, -1), matrix.shape[1]] }),
  onnx: (emit, [q, rows, matrix, scale, bias]) => {
    const unit = emit.constant(scalar(1));
    const zero = emit.constant(byte(ZERO));
    const [product] = emit.node("MatMulIntegerToFloat", [q, matrix, unit, scale, zero], {}, CONTRIB);
    const [y] = emit.node("Mul", [product, rows]);
    return bias ? emit.node("Add", [y, bias]) : [y];
  },
};

/**
 * x·matrix·scale + bias over the last axis, with a scale for each row of x, so that no token costs another its
 * precision. x [..., K], matrix int8 [K,O], scale [O], bias [O] → [..., O].
 */
export function projectInt8(x: Value, matrix: Value, scale: Value, bias?: Value): Value {
  checkMatrix("ProjectInt8", matrix, scale, x.shape[x.rank - 1] as number);
  const q = apply(quantizeRowsOp, [x]); // the same node for all layers that read x
  return apply(projectOp, [q, output(q, 1), matrix, scale, ...(bias ? [bias] : [])]);
}

/** Of a rotation: large enough to level outliers, small enough to cost little. */
const BLOCK = 64;

/**
 * Width of the blocks in which the input of a linear layer of weight [O,K] is rotated: layers that narrow take what a
 * gate or an activation made, with few large values that the others would share a scale with.
 */
export function rotation([O, K]: readonly number[]): number | undefined {
  return K > O && K % BLOCK === 0 ? BLOCK : undefined;
}

/**
 * x [..., K] with each block of `width` values (a power of two) multiplied by a Hadamard matrix, orthonormal and
 * symmetric (Ashkboos et al. 2024, QuaRot): large values are spread over their block. A weight that was rotated alike
 * gives the same product.
 */
export function rotate(x: Value, width: number): Value {
  const blocks = [...x.shape.slice(0, -1), (x.shape[x.rank - 1] as number) / width, width];
  return x.reshape(blocks).matmul(hadamard(width)).reshape(x.shape);
}

const matrices = new Map<number, Value>();

/** Sylvester's Hadamard matrix over √n: the sign of an element is the parity of the bits that row and column share. */
function hadamard(n: number): Value {
  const known = matrices.get(n);
  if (known) return known;
  const isOdd = (bits: number): boolean => bits > 0 && (bits % 2 === 1) !== isOdd(bits >> 1);
  const sign = (i: number) => (isOdd(Math.floor(i / n) & (i % n)) ? -1 : 1);
  const elements = Float32Array.from({ length: n * n }, (_, i) => sign(i) / Math.sqrt(n));
  const matrix = constant(floats([n, n], elements));
  matrices.set(n, matrix);
  return matrix;
}

export interface ConvInt8Options {
  /** Height and width of the kernel. */
  kernel: readonly number[];
  strides: readonly [number, number];
  /** top, left, bottom, right */
  pads: readonly [number, number, number, number];
  /** Of the result. */
  shape: Shape;
}

/** One scale for the tensor: positions of it are summed. The product is over the uint8 input under each position. */
const convOp: OpDef = {
  name: "ConvInt8",
  infer: (_, attrs) => ({ dtype: "float32", shape: attrs.shape as Shape }),
  // the input under each position
  scratch: ({ shape: [B, , h, w], inputs: [, matrix] }) => sizeDim([B, h, w, matrix.shape[0]]),
  onnx: (emit, [x, matrix, scale, bias], y) => {
    const [pixels] = emit.node("Transpose", [x], { perm: [0, 2, 3, 1] });
    const [q, unit, zero] = emit.node("DynamicQuantizeLinear", [pixels], {}, { outputs: 3 });
    const columns = im2col(emit, q, zero, y);
    const inputs = [columns, matrix, unit, scale, zero, "", ...(bias ? [bias] : [])];
    const [product] = emit.node("MatMulIntegerToFloat", inputs, {}, CONTRIB);
    return emit.node("Transpose", [product], { perm: [0, 3, 1, 2] });
  },
};

/** [B,H,W,C] → [B,h,w,kh·kw·C], by whole pixels. */
function im2col(emit: Emit, x: string, zero: string, { inputs, attrs }: Value): string {
  const options = attrs as unknown as ConvInt8Options;
  const { kernel, strides, pads } = options;
  const [top, left, bottom, right] = pads;
  const around = [0, top, left, 0, 0, bottom, right, 0];
  const padded = pads.some((p) => p > 0)
    ? emit.node("Pad", [x, emit.constant(ints([8], around)), zero])[0]
    : x;
  if (sizeDim([...kernel, ...strides]) === 1) return padded;
  const [, C, , W] = inputs[0].shape as [Dim, number, Dim, Dim];
  const [pixels] = emit.node("Reshape", [padded, emit.constant(ints([3], [0, -1, C]))]);
  const places = placesUnder(emit, options, addDim(W, left + right));
  const [under] = emit.node("Gather", [pixels, places], { axis: 1 }); // [B,h,w,kh·kw,C]
  const together = [0, 0, 0, (sizeDim(kernel) as number) * C];
  return emit.node("Reshape", [under, emit.constant(ints([4], together))])[0];
}

/** Which pixels of a padded picture of this width lie under the kernel at each position, row by row: [h,w,kh·kw]. */
function placesUnder(emit: Emit, { kernel, strides, shape }: ConvInt8Options, width: Dim): string {
  const number = (d: Dim) => emit.node("Squeeze", [emit.shape([d])])[0];
  const range = (to: Dim, ...dims: number[]) => {
    const [all] = emit.node("Range", [number(0), number(to), number(1)]);
    return emit.node("Reshape", [all, emit.constant(ints([dims.length], dims))])[0];
  };
  const times = (a: string, d: Dim) => emit.node("Mul", [a, emit.shape([d])])[0];
  const [kh, kw] = kernel;
  const across = [
    times(range(shape[2], -1, 1, 1, 1), mulDim(width, strides[0])),
    times(range(shape[3], -1, 1, 1), strides[1]),
    times(range(kh, -1, 1), width),
    range(kw, -1),
  ];
  const places = across.reduce((a, b) => emit.node("Add", [a, b])[0]);
  return emit.node("Reshape", [places, emit.constant(ints([3], [0, 0, kh * kw]))])[0];
}

/** x [B,C,H,W] * matrix int8 [kh·kw·C, O] times scale [O], + bias [O] → [B,O,h,w] */
export function convInt8(
  x: Value,
  matrix: Value,
  scale: Value,
  bias: Value | undefined,
  options: ConvInt8Options,
): Value {
  const [kh, kw] = options.kernel;
  checkMatrix("ConvInt8", matrix, scale, kh * kw * (x.shape[1] as number));
  return apply(convOp, bias ? [x, matrix, scale, bias] : [x, matrix, scale], { ...options });
}

function checkMatrix(name: string, matrix: Value, scale: Value, inner: number): void {
  const [K, O] = matrix.shape;
  if (matrix.dtype !== "int8" || matrix.rank !== 2 || K !== inner || scale.shape.join() !== `${O}`)
    throw new Error(
      `${name}: matrix ${typeText(matrix)} and scale ${typeText(scale)} do not fit ${inner} wide`,
    );
}
