/** @file A tensor in host memory: what goes into and comes out of programs, files and samplers. */

import {
  DTYPES,
  type DType,
  type Float8,
  fromBFloat16Bits,
  fromFloat8E4M3Bits,
  fromFloat8E5M2Bits,
  fromFloat16Bits,
  type TypedArray,
  toBFloat16Bits,
  toFloat16Bits,
} from "./dtype.ts";

export interface HostTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Row-major; length is the product of `shape`. */
  readonly data: TypedArray;
}

/** A float32 tensor, the working type of latents and pictures. */
export interface FloatTensor extends HostTensor {
  readonly dtype: "float32";
  readonly data: Float32Array;
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((n, d) => n * d, 1);
}

/** @throws if `data.length` differs from the product of `shape`, or the array class does not fit `dtype`. */
export function tensor(dtype: DType, shape: readonly number[], data: TypedArray): HostTensor {
  if (data.length !== sizeOf(shape))
    throw new Error(
      `tensor: shape [${shape}] holds ${sizeOf(shape)} elements, but the data has ${data.length}`,
    );
  if (!(data instanceof DTYPES[dtype].array))
    throw new Error(
      `tensor: ${dtype} is stored as ${DTYPES[dtype].array.name}, got ${data.constructor.name}`,
    );
  return { dtype, shape: [...shape], data };
}

/** Float32 tensor; zeros when `data` is left out. */
export function floats(shape: readonly number[], data?: ArrayLike<number>): FloatTensor {
  const array =
    data instanceof Float32Array ? data : data ? Float32Array.from(data) : new Float32Array(sizeOf(shape));
  return tensor("float32", shape, array) as FloatTensor;
}

/** Tensors that differ in their first axis at most, one after the other along it. */
export function concatenate(list: readonly FloatTensor[]): FloatTensor {
  const out = floats([list.reduce((n, { shape }) => n + shape[0], 0), ...list[0].shape.slice(1)]);
  let at = 0;
  for (const { data } of list) {
    out.data.set(data, at);
    at += data.length;
  }
  return out;
}

/** Int64 tensor from plain numbers. */
export function ints(shape: readonly number[], data: ArrayLike<number>): HostTensor {
  return tensor("int64", shape, BigInt64Array.from(Array.from(data, (v) => BigInt(v))));
}

export function zeros(dtype: DType, shape: readonly number[]): HostTensor {
  return { dtype, shape: [...shape], data: new DTYPES[dtype].array(sizeOf(shape)) };
}

/** The value of every number of a format: a look-up takes a tenth of the arithmetic. */
const TABLES: Readonly<Record<"float16" | Float8, () => Float32Array>> = {
  float16: valueTable(16, fromFloat16Bits),
  float8_e4m3fn: valueTable(8, fromFloat8E4M3Bits),
  float8_e5m2: valueTable(8, fromFloat8E5M2Bits),
};

/** Made when it is first asked for. */
function valueTable(bits: number, value: (bits: number) => number): () => Float32Array {
  let table: Float32Array | undefined;
  return () => {
    table ??= Float32Array.from({ length: 1 << bits }, (_, i) => value(i));
    return table;
  };
}

/** The values as JavaScript numbers in a float32 tensor, whatever the stored type. */
export function toFloat32(t: HostTensor): FloatTensor {
  if (t.dtype === "float32") return t as FloatTensor;
  const out = new Float32Array(t.data.length);
  const { data, dtype } = t;
  if (dtype in TABLES) {
    const values = TABLES[dtype as keyof typeof TABLES]();
    for (let i = 0; i < out.length; i++) out[i] = values[Number(data[i])];
  } else if (dtype === "bfloat16")
    for (let i = 0; i < out.length; i++) out[i] = fromBFloat16Bits(Number(data[i]));
  else for (let i = 0; i < out.length; i++) out[i] = Number(data[i]);
  return floats(t.shape, out);
}

/**
 * Bits of the nearest number of an 8-bit format, ties to even. What is beyond the largest becomes that one, as by
 * ONNX's Cast.
 * @param values those from 0 to the largest, which rise with their bits.
 */
function toFloat8Bits(x: number, values: Float32Array): number {
  if (Number.isNaN(x)) return 0x7f;
  const sign = x < 0 || Object.is(x, -0) ? 0x80 : 0;
  const size = Math.abs(x);
  let low = 0;
  let high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] <= size) low = middle;
    else high = middle;
  }
  const [below, above] = [size - values[low], values[high] - size];
  return sign | (below < above || (below === above && low % 2 === 0) ? low : high);
}

/** Converts between element types (round to nearest even for 16- and 8-bit floats). */
export function castTensor(t: HostTensor, dtype: DType): HostTensor {
  if (t.dtype === dtype) return t;
  const source = toFloat32(t).data;
  const out = zeros(dtype, t.shape);
  const data = out.data;
  if (dtype === "float16") for (let i = 0; i < source.length; i++) data[i] = toFloat16Bits(source[i]);
  else if (dtype === "bfloat16") for (let i = 0; i < source.length; i++) data[i] = toBFloat16Bits(source[i]);
  else if (dtype === "float8_e4m3fn" || dtype === "float8_e5m2") {
    const all = TABLES[dtype]();
    const values = all.subarray(
      0,
      all.findIndex((v) => !Number.isFinite(v)),
    );
    for (let i = 0; i < source.length; i++) data[i] = toFloat8Bits(source[i], values);
  } else if (dtype === "int64")
    for (let i = 0; i < source.length; i++) (data as BigInt64Array)[i] = BigInt(Math.trunc(source[i]));
  else for (let i = 0; i < source.length; i++) data[i] = source[i];
  return out;
}
