/** @file Element types, under their ONNX/NumPy names, and the 16- and 8-bit float formats JavaScript lacks. */

export type DType =
  | "float64"
  | "float32"
  | "float16"
  | "bfloat16"
  | Float8
  | "int64"
  | "int32"
  | "int8"
  | "uint8"
  | "bool";

/** Floats of 8 bits (Micikevicius et al. 2022), under torch's names: what weights are stored in, never computed in. */
export type Float8 = "float8_e4m3fn" | "float8_e5m2";

/** Storage of one tensor. 16- and 8-bit floats are kept as raw bits; int64 as BigInt. */
export type TypedArray =
  | Float64Array
  | Float32Array
  | Uint16Array
  | BigInt64Array
  | Int32Array
  | Int8Array
  | Uint8Array;

interface DTypeInfo {
  bytes: number;
  /** `TensorProto.DataType` of the ONNX specification. */
  onnx: number;
  array: {
    new (length: number): TypedArray;
    new (buffer: ArrayBufferLike, byteOffset: number, length: number): TypedArray;
  };
}

export const DTYPES: Record<DType, DTypeInfo> = {
  float32: { bytes: 4, onnx: 1, array: Float32Array },
  uint8: { bytes: 1, onnx: 2, array: Uint8Array },
  int8: { bytes: 1, onnx: 3, array: Int8Array },
  int32: { bytes: 4, onnx: 6, array: Int32Array },
  int64: { bytes: 8, onnx: 7, array: BigInt64Array },
  bool: { bytes: 1, onnx: 9, array: Uint8Array },
  float16: { bytes: 2, onnx: 10, array: Uint16Array },
  float64: { bytes: 8, onnx: 11, array: Float64Array },
  bfloat16: { bytes: 2, onnx: 16, array: Uint16Array },
  float8_e4m3fn: { bytes: 1, onnx: 17, array: Uint8Array },
  float8_e5m2: { bytes: 1, onnx: 19, array: Uint8Array },
};

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** Bits of the nearest binary16 value, ties to even; overflow gives infinity (IEEE 754). */
export function toFloat16Bits(x: number): number {
  f32[0] = x;
  const bits = u32[0];
  const sign = (bits >>> 16) & 0x8000;
  const exp = (bits >>> 23) & 0xff;
  let man = bits & 0x7fffff;
  if (exp === 0xff) return sign | 0x7c00 | (man ? 0x200 | (man >>> 13) : 0);
  const e = exp - 112; // rebias 127 → 15
  if (e >= 31) return sign | 0x7c00;
  if (e <= 0) {
    if (e < -10) return sign;
    man |= 0x800000;
    const shift = 14 - e;
    const half = man >>> shift;
    const rest = man & ((1 << shift) - 1);
    const tie = 1 << (shift - 1);
    return sign | (half + (rest > tie || (rest === tie && half & 1) ? 1 : 0));
  }
  const half = (e << 10) | (man >>> 13);
  const rest = man & 0x1fff;
  return sign | (half + (rest > 0x1000 || (rest === 0x1000 && half & 1) ? 1 : 0)); // carry may reach infinity
}

export function fromFloat16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exp = (bits >>> 10) & 0x1f;
  const man = bits & 0x3ff;
  if (exp === 0) return sign * man * 2 ** -24;
  if (exp === 31) return man ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + man / 1024) * 2 ** (exp - 15);
}

export function toBFloat16Bits(x: number): number {
  f32[0] = x;
  const bits = u32[0];
  if (Number.isNaN(x)) return 0x7fc0;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

export function fromBFloat16Bits(bits: number): number {
  u32[0] = bits << 16;
  return f32[0];
}

/** Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, and all ones are no number. */
export function fromFloat8E4M3Bits(bits: number): number {
  const sign = bits & 0x80 ? -1 : 1;
  const exp = (bits >>> 3) & 0xf;
  const man = bits & 7;
  if (exp === 0) return sign * man * 2 ** -9;
  if (exp === 15 && man === 7) return Number.NaN;
  return sign * (1 + man / 8) * 2 ** (exp - 7);
}

/** The upper half of a binary16 number. */
export function fromFloat8E5M2Bits(bits: number): number {
  return fromFloat16Bits(bits << 8);
}
