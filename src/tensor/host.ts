/** @file A tensor in host memory: what goes into and comes out of programs, files and samplers. */

import {
  DTYPES,
  type DType,
  fromBFloat16Bits,
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

/** Int64 tensor from plain numbers. */
export function ints(shape: readonly number[], data: ArrayLike<number>): HostTensor {
  return tensor("int64", shape, BigInt64Array.from(Array.from(data, (v) => BigInt(v))));
}

export function zeros(dtype: DType, shape: readonly number[]): HostTensor {
  return { dtype, shape: [...shape], data: new DTYPES[dtype].array(sizeOf(shape)) };
}

let table: Float32Array | undefined;

/** The value of every binary16 number: a look-up takes a tenth of the arithmetic. */
function halves(): Float32Array {
  table ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => fromFloat16Bits(bits));
  return table;
}

/** The values as JavaScript numbers in a float32 tensor, whatever the stored type. */
export function toFloat32(t: HostTensor): FloatTensor {
  if (t.dtype === "float32") return t as FloatTensor;
  const out = new Float32Array(t.data.length);
  const { data } = t;
  if (t.dtype === "float16") {
    const values = halves();
    for (let i = 0; i < out.length; i++) out[i] = values[Number(data[i])];
  } else if (t.dtype === "bfloat16")
    for (let i = 0; i < out.length; i++) out[i] = fromBFloat16Bits(Number(data[i]));
  else for (let i = 0; i < out.length; i++) out[i] = Number(data[i]);
  return floats(t.shape, out);
}

/** Converts between element types (round to nearest even for 16-bit floats). */
export function castTensor(t: HostTensor, dtype: DType): HostTensor {
  if (t.dtype === dtype) return t;
  const source = toFloat32(t).data;
  const out = zeros(dtype, t.shape);
  const data = out.data;
  if (dtype === "float16") for (let i = 0; i < source.length; i++) data[i] = toFloat16Bits(source[i]);
  else if (dtype === "bfloat16") for (let i = 0; i < source.length; i++) data[i] = toBFloat16Bits(source[i]);
  else if (dtype === "int64")
    for (let i = 0; i < source.length; i++) (data as BigInt64Array)[i] = BigInt(Math.trunc(source[i]));
  else for (let i = 0; i < source.length; i++) data[i] = source[i];
  return out;
}
