/** @file Weights in int8: symmetric, with a scale for each output channel. K inner width, O outputs. */

import { constant, graph, input } from "../graph/index.ts";
import { projectInt8 } from "../ops/index.ts";
import { compile } from "../runtime/index.ts";
import { type FloatTensor, floats, type HostTensor } from "../tensor/index.ts";

/** Rows that are turned into columns at a time: as many streams as a cache can follow. */
const BLOCK = 32;

export interface Int8Matrix {
  matrix: HostTensor; // int8 [K,O]
  scale: FloatTensor; // [O]
}

/**
 * A weight [O, ...] as the matrix [K,O] that the product takes: w ≈ matrix·scale, where the largest magnitude of an
 * output becomes 127 (8 bits) or 63 (7 bits).
 * @param axes order of the weight's axes in the matrix, the outputs last.
 */
export function int8Matrix({ shape, data }: FloatTensor, axes: readonly number[], bits: number): Int8Matrix {
  const [O] = shape;
  const K = data.length / O;
  const levels = 2 ** (bits - 1) - 1;
  const from = innerOrder(shape, axes);
  const scale = floats([O]);
  for (let o = 0; o < O; o++) {
    let most = 0;
    for (let k = o * K; k < (o + 1) * K; k++) most = Math.max(most, Math.abs(data[k]));
    scale.data[o] = most > 0 ? most / levels : 1;
  }
  const inverse = scale.data.map((s) => 1 / s);
  const out = new Int8Array(O * K);
  for (let first = 0; first < O; first += BLOCK) {
    const end = Math.min(O, first + BLOCK);
    for (let k = 0; k < K; k++)
      for (let o = first; o < end; o++) out[k * O + o] = Math.round(data[o * K + from[k]] * inverse[o]);
  }
  return { matrix: { dtype: "int8", shape: [K, O], data: out }, scale };
}

/** Where in a row of the weight each inner element of the matrix is. */
function innerOrder(shape: readonly number[], axes: readonly number[]): Int32Array {
  const strides = shape.map((_, a) => shape.slice(a + 1).reduce((n, d) => n * d, 1));
  let offsets = [0];
  for (const a of axes.filter((axis) => axis !== 0))
    offsets = offsets.flatMap((at) => Array.from({ length: shape[a] }, (_, i) => at + i * strides[a]));
  return Int32Array.from(offsets);
}

/** A weight [O,K] rotated as `rotate` of ops does its input, by the fast Walsh–Hadamard transform. */
export function rotated({ shape, data }: FloatTensor, width: number): FloatTensor {
  const out = data.slice();
  for (let half = 1; half < width; half *= 2)
    for (let start = 0; start < out.length; start += 2 * half)
      for (let i = start; i < start + half; i++) {
        const [a, b] = [out[i], out[i + half]];
        out[i] = (a + b) * Math.SQRT1_2;
        out[i + half] = (a - b) * Math.SQRT1_2;
      }
  return floats(shape, out);
}

let known: Promise<number> | undefined;

/**
 * Bits of a weight that this processor multiplies exactly: 8, or 7 where sums of two products of uint8 and int8
 * saturate at 16 bits (x86 with AVX2 but without VNNI). Found by trying.
 */
export function weightBits(): Promise<number> {
  known ??= probe();
  return known;
}

async function probe(): Promise<number> {
  const n = 64;
  const x = input("x", "float32", [n, n]);
  const most: HostTensor = { dtype: "int8", shape: [n, n], data: new Int8Array(n * n).fill(127) };
  const unit = floats([n], new Float32Array(n).fill(1 / 127));
  await using program = await compile(graph({ y: projectInt8(x, constant(most), constant(unit)) }), {
    threads: 1,
  });
  const { y } = await program.run({ x: floats([n, n], new Float32Array(n * n).fill(1)) });
  return Math.abs(Number(y.data[0]) - n) < 0.5 ? 8 : 7;
}
