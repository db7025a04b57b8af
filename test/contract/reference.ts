/** @file Naive float64 references: clarity before speed, independent of the engine. */

import { constant, type Value } from "../../src/graph/index.ts";
import { floats, type HostTensor, sizeOf } from "../../src/tensor/index.ts";

export interface Array {
  shape: number[];
  data: Float64Array;
}

export function fromTensor(t: HostTensor): Array {
  return { shape: [...t.shape], data: Float64Array.from<number | bigint>(t.data, Number) };
}

function make(shape: number[], f: (index: number[]) => number): Array {
  const data = new Float64Array(sizeOf(shape));
  const index = shape.map(() => 0);
  for (let i = 0; i < data.length; i++) {
    data[i] = f(index);
    for (let a = shape.length - 1; a >= 0 && ++index[a] === shape[a]; a--) index[a] = 0;
  }
  return { shape, data };
}

/** Element at an index; axes of size 1 broadcast, missing leading axes too. */
function at(x: Array, index: readonly number[]): number {
  let offset = 0;
  const skip = index.length - x.shape.length;
  x.shape.forEach((d, a) => {
    offset = offset * d + (d === 1 ? 0 : index[a + skip]);
  });
  return x.data[offset];
}

export function full(shape: number[], value: number): Array {
  return make(shape, () => value);
}

export function map(f: (...x: number[]) => number, ...xs: Array[]): Array {
  const rank = Math.max(...xs.map((x) => x.shape.length));
  const shape = globalThis.Array.from({ length: rank }, (_, a) =>
    Math.max(...xs.map((x) => x.shape[a - rank + x.shape.length] ?? 1)),
  );
  return make(shape, (i) => f(...xs.map((x) => at(x, i))));
}

export function reshape(x: Array, shape: number[]): Array {
  return { shape, data: x.data };
}
export function transpose(x: Array, perm: number[]): Array {
  return make(
    perm.map((p) => x.shape[p]),
    (i) =>
      at(
        x,
        perm.map((_, a) => i[perm.indexOf(a)]),
      ),
  );
}
export function slice(x: Array, axis: number, start: number, end: number, step: number): Array {
  const size = Math.ceil((end - start) / step);
  return make(x.shape.with(axis, size), (i) => at(x, i.with(axis, start + i[axis] * step)));
}
export function pad(x: Array, axis: number, before: number, after: number): Array {
  return make(x.shape.with(axis, x.shape[axis] + before + after), (i) => {
    const k = i[axis] - before;
    return k < 0 || k >= x.shape[axis] ? 0 : at(x, i.with(axis, k));
  });
}
export function concat(xs: Array[], axis: number): Array {
  const size = xs.reduce((n, x) => n + x.shape[axis], 0);
  return make(xs[0].shape.with(axis, size), (i) => {
    let k = i[axis];
    let part = 0;
    while (k >= xs[part].shape[axis]) k -= xs[part++].shape[axis];
    return at(xs[part], i.with(axis, k));
  });
}
export function gather(x: Array, indices: HostTensor): Array {
  const n = indices.shape.length;
  return make([...indices.shape, ...x.shape.slice(1)], (i) => {
    const row = at(fromTensor(indices), i.slice(0, n));
    return at(x, [row, ...i.slice(n)]);
  });
}
export function tokens(x: Array, index: HostTensor): Array {
  return make([x.shape[0], x.shape[2]], ([b, d]) => at(x, [b, Number(index.data[b]), d]));
}
export function resize(x: Array, H: number, W: number): Array {
  const [B, C, h, w] = x.shape;
  return make([B, C, H, W], ([b, c, i, j]) =>
    at(x, [b, c, Math.floor((i * h) / H), Math.floor((j * w) / W)]),
  );
}
export function reduce(x: Array, axes: number[], keepdims: boolean, f: (values: number[]) => number): Array {
  const kept = x.shape.map((d, a) => (axes.includes(a) ? 1 : d));
  const inner = x.shape.map((d, a) => (axes.includes(a) ? d : 1));
  const out = make(kept, (i) => {
    const start = [...i];
    const values: number[] = [];
    make(inner, (j) => {
      const index = start.map((s, a) => s + j[a]);
      return values.push(at(x, index));
    });
    return f(values);
  });
  return keepdims
    ? out
    : reshape(
        out,
        x.shape.filter((_, a) => !axes.includes(a)),
      );
}
export function softmax(x: Array): Array {
  const last = x.shape.length - 1;
  const e = map(Math.exp, x);
  return map(
    (a, b) => a / b,
    e,
    reduce(e, [last], true, (v) => v.reduce((p, q) => p + q, 0)),
  );
}
export function matmul(a: Array, b: Array): Array {
  const [m, k] = a.shape.slice(-2);
  const n = b.shape[b.shape.length - 1];
  const rank = Math.max(a.shape.length, b.shape.length);
  const batch = globalThis.Array.from({ length: rank - 2 }, (_, i) =>
    Math.max(a.shape[i - rank + a.shape.length] ?? 1, b.shape[i - rank + b.shape.length] ?? 1),
  );
  return make([...batch, m, n], (i) => {
    const head = i.slice(0, -2);
    let sum = 0;
    for (let t = 0; t < k; t++) sum += at(a, [...head, i[rank - 2], t]) * at(b, [...head, t, i[rank - 1]]);
    return sum;
  });
}
export function conv(
  x: Array,
  w: Array,
  b: Array,
  { strides = [1, 1], pads = [0, 0, 0, 0] }: { strides?: number[]; pads?: number[] },
): Array {
  const [B, C, H, W] = x.shape;
  const [O, , kh, kw] = w.shape;
  const h = Math.floor((H + pads[0] + pads[2] - kh) / strides[0]) + 1;
  const width = Math.floor((W + pads[1] + pads[3] - kw) / strides[1]) + 1;
  return make([B, O, h, width], ([n, o, i, j]) => {
    let sum = b.data[o];
    for (let c = 0; c < C; c++)
      for (let p = 0; p < kh; p++)
        for (let q = 0; q < kw; q++) {
          const y = i * strides[0] + p - pads[0];
          const z = j * strides[1] + q - pads[1];
          if (y >= 0 && y < H && z >= 0 && z < W) sum += at(x, [n, c, y, z]) * at(w, [o, c, p, q]);
        }
    return sum;
  });
}
/** x rounded to 127 steps of the largest magnitude of its row, times an int8 matrix [K,O] with scales [O], + b. */
export function projectInt8(x: Array, matrix: Array, scale: Array, b: Array): Array {
  const rounded = make(x.shape, (i) => {
    const row = globalThis.Array.from({ length: x.shape[x.shape.length - 1] }, (_, k) =>
      at(x, i.with(-1, k)),
    );
    const step = Math.max(...row.map(Math.abs)) / 127;
    return roundEven(at(x, i) / step) * step;
  });
  return map(
    (y, bias) => y + bias,
    matmul(
      rounded,
      map((w, s) => w * s, matrix, scale),
    ),
    b,
  );
}

/** x rounded to 255 steps from its least to its largest value and 0, by an int8 kernel [k·k·C, O]. */
export function convInt8(
  x: Array,
  matrix: Array,
  scale: Array,
  b: Array,
  k: number,
  stride: number,
  pad: number,
): Array {
  const least = Math.min(0, ...x.data);
  const step = (Math.max(0, ...x.data) - least) / 255;
  const zero = roundEven(-least / step);
  const rounded = map((v) => (Math.min(255, Math.max(0, roundEven(v / step) + zero)) - zero) * step, x);
  const C = x.shape[1];
  const w = make(
    [scale.data.length, C, k, k],
    ([o, c, p, q]) => at(matrix, [(p * k + q) * C + c, o]) * scale.data[o],
  );
  return conv(rounded, w, b, { strides: [stride, stride], pads: [pad, pad, pad, pad] });
}

function roundEven(x: number): number {
  const down = Math.floor(x);
  return x - down === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}

/** Normalises runs of `size` elements, then scales along the last axis. */
export function normalize(x: Array, scale: Array, bias: Array, size: number, eps: number): Array {
  const rows = standardize(reshape(x, [x.data.length / size, size]), eps);
  return map((v, s, b) => v * s + b, reshape(rows, x.shape), scale, bias);
}
function standardize(rows: Array, eps: number): Array {
  const mean = reduce(rows, [1], true, (v) => v.reduce((a, b) => a + b, 0) / v.length);
  const centred = map((a, m) => a - m, rows, mean);
  const variance = reduce(centred, [1], true, (v) => v.reduce((a, b) => a + b * b, 0) / v.length);
  return map((a, v) => a / Math.sqrt(v + eps), centred, variance);
}
export function groupNorm(x: Array, scale: Array, bias: Array, groups: number): Array {
  const size = x.data.length / x.shape[0] / groups;
  const rows = reshape(standardize(reshape(x, [x.shape[0] * groups, size]), 1e-5), x.shape);
  const channel = (v: Array) => reshape(v, [x.shape[1], ...x.shape.slice(2).map(() => 1)]);
  return map((v, s, b) => v * s + b, rows, channel(scale), channel(bias));
}
export function attention(q: Array, k: Array, v: Array, heads: number, causal = false): Array {
  const split = (x: Array) =>
    transpose(reshape(x, [x.shape[0], x.shape[1], heads, x.shape[2] / heads]), [0, 2, 1, 3]);
  const [Q, K, V] = [split(q), split(k), split(v)];
  const raw = matmul(Q, transpose(K, [0, 1, 3, 2]));
  const scores = make(raw.shape, (i) =>
    causal && i[3] > i[2] ? Number.NEGATIVE_INFINITY : at(raw, i) / Math.sqrt(Q.shape[3]),
  );
  return reshape(transpose(matmul(softmax(scores), V), [0, 2, 1, 3]), q.shape);
}
/** Additive mask [T,T] that hides later tokens. */
export function causalMask(T: number): Value {
  const data = Float32Array.from({ length: T * T }, (_, i) => (i % T > Math.floor(i / T) ? -1e9 : 0));
  return constant(floats([T, T], data));
}

/** Abramowitz & Stegun give too few digits; the series and the continued fraction give all of float64. */
export function erf(x: number): number {
  if (x < 0) return -erf(-x);
  let sum = x;
  let term = x;
  for (let n = 1; n < 200; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

/** Largest difference relative to the largest reference value. */
export function distance(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let worst = 0;
  let scale = 1e-6;
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  for (let i = 0; i < want.length; i++) {
    worst = Math.max(worst, Number.isNaN(got[i]) ? Number.POSITIVE_INFINITY : Math.abs(got[i] - want[i]));
    scale = Math.max(scale, Math.abs(want[i]));
  }
  return worst / scale;
}

/** ∂/∂xᵢ Σ dy·f(x), one element at a time. */
export function centralDifferences(
  f: (...x: Array[]) => Array,
  xs: Array[],
  which: number,
  dy: ArrayLike<number>,
): number[] {
  const h = 1e-6;
  const { data } = xs[which];
  const value = () => f(...xs).data.reduce((sum, y, i) => sum + y * dy[i], 0);
  return globalThis.Array.from(data, (old, i) => {
    data[i] = old + h;
    const up = value();
    data[i] = old - h;
    const down = value();
    data[i] = old;
    return (up - down) / (2 * h);
  });
}
