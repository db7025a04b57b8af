/** @file torch's CPU generator: MT19937 (Matsumoto & Nishimura 1998) and the way torch draws from it. */

import { type FloatTensor, floats, sizeOf } from "./host.ts";

const N = 624;
const M = 397;
const f = Math.fround;

/** The same numbers as `torch.Generator().manual_seed(seed)` on the CPU. */
export class Generator {
  private readonly state = new Uint32Array(N);
  private index = N;
  /** Second value of the last scalar Box–Muller pair. */
  private cached: number | undefined;

  /** @param seed 0 to 2⁶⁴ − 1; torch keeps the low 32 bits. */
  constructor(seed: number | bigint) {
    const s = this.state;
    s[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < N; i++) s[i] = Math.imul(1812433253, s[i - 1] ^ (s[i - 1] >>> 30)) + i;
  }

  private refill(): void {
    const s = this.state;
    for (let i = 0; i < N; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % N] & 0x7fffffff);
      s[i] = s[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }

  /** 32 random bits. */
  uint32(): number {
    if (this.index === N) this.refill();
    let y = this.state[this.index++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** Uniform in [0, 1) with 53 bits, as torch draws doubles. */
  random(): number {
    const high = this.uint32() & 0x1fffff;
    return (high * 2 ** 32 + this.uint32()) * 2 ** -53;
  }

  /** Whole number in [0, n) for n ≤ 2³², as torch.randint for n < 2²⁸; above, torch draws 64 bits. */
  integer(n: number): number {
    return this.uint32() % n;
  }

  /** torch.rand: float32 in [0, 1) with 24 bits. */
  rand(shape: readonly number[]): FloatTensor {
    const out = floats(shape);
    for (let i = 0; i < out.data.length; i++) out.data[i] = this.uniform24();
    return out;
  }

  private uniform24(): number {
    return (this.uint32() & 0xffffff) * 2 ** -24;
  }

  /** torch.randn. Fewer than 16 values are drawn one by one in double precision, others in blocks of 16. */
  randn(shape: readonly number[]): FloatTensor {
    const out = floats(shape);
    const { data } = out;
    const size = sizeOf(shape);
    if (size < 16) {
      for (let i = 0; i < size; i++) data[i] = this.normal();
      return out;
    }
    for (let i = 0; i < size; i++) data[i] = this.uniform24();
    for (let i = 0; i + 16 <= size; i += 16) boxMuller(data, i);
    if (size % 16 !== 0) {
      for (let i = size - 16; i < size; i++) data[i] = this.uniform24(); // the tail is drawn again
      boxMuller(data, size - 16);
    }
    return out;
  }

  private normal(): number {
    if (this.cached !== undefined) {
      const value = this.cached;
      this.cached = undefined;
      return value;
    }
    const theta = 2 * Math.PI * this.random();
    const radius = Math.sqrt(-2 * Math.log1p(-this.random()));
    this.cached = radius * Math.sin(theta);
    return radius * Math.cos(theta);
  }
}

/**
 * Sixteen uniforms to sixteen normals, bit for bit those of torch's kernel for x86 processors with AVX2: float32,
 * with the logarithm, sine and cosine of Cephes (Moshier) and a fused multiply-add wherever a sum follows a product.
 * Elsewhere torch calls the C library, whose last bits differ.
 */
function boxMuller(data: Float32Array, at: number): void {
  for (let j = at; j < at + 8; j++) {
    const radius = f(Math.sqrt(-2 * logf(f(1 - data[j]))));
    const [sin, cos] = sincosf(f(f(2 * Math.PI) * data[j + 8]));
    data[j] = f(radius * cos) + 0; // the kernel adds a mean of 0, which leaves no −0
    data[j + 8] = f(radius * sin) + 0;
  }
}

/**
 * a·b + c rounded once to float32. In double precision the product is exact; when the rounded sum lies half way
 * between two floats, what its rounding left out decides between them.
 */
function fma(a: number, b: number, c: number): number {
  const product = a * b;
  const sum = product + c;
  const near = f(sum);
  const far = 2 * sum - near; // the other neighbour, if half way
  if (far === near || f(far) !== far) return near;
  const added = sum - product;
  const rest = product - (sum - added) + (c - added); // Knuth's two-sum
  return rest * (far - near) > 0 ? far : near;
}

/** Horner's rule, highest power first. */
function polynomial(coefficients: Float32Array, x: number): number {
  let y = coefficients[0];
  for (let i = 1; i < coefficients.length; i++) y = fma(y, x, coefficients[i]);
  return y;
}

/** (log(1 + x) − x + x²/2) / x³ for 1 + x from √½ to √2. */
const LOG = Float32Array.of(
  7.0376836292e-2,
  -1.151461031e-1,
  1.167699874e-1,
  -1.2420140846e-1,
  1.4249322787e-1,
  -1.6668057665e-1,
  2.0000714765e-1,
  -2.4999993993e-1,
  3.3333331174e-1,
);
/** log 2 in two parts; products of the first with an exponent are exact. */
const [LN2_HIGH, LN2_LOW] = Float32Array.of(0.693359375, -2.1219444e-4);

/** log u of a multiple of 2⁻²⁴ in (0, 1]: u = (1 + x)·2ᵉ. */
function logf(u: number): number {
  let e = 8 - Math.clz32(u * 2 ** 24);
  let m = u * 2 ** -e; // [½, 1)
  if (m < f(Math.SQRT1_2)) {
    m *= 2;
    e--;
  }
  const x = m - 1;
  const square = f(x * x);
  const cubic = fma(f(polynomial(LOG, x) * x), square, f(e * LN2_LOW));
  return fma(e, LN2_HIGH, f(x + fma(-0.5, square, cubic)));
}

/** (sin x − x) / x³ and (cos x − 1 + x²/2) / x⁴ in x², for |x| up to π/4. */
const SIN = Float32Array.of(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1);
const COS = Float32Array.of(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2);
/** −π/4 in three parts (Cody & Waite 1980). */
const QUARTER_PI = Float32Array.of(-0.78515625, -2.4187564849853516e-4, -3.774894977445941e-8);

/** Sine and cosine of theta ≥ 0, from the nearest multiple of π/2. */
function sincosf(theta: number): [sin: number, cos: number] {
  const octant = (Math.trunc(f(theta * f(4 / Math.PI))) + 1) & ~1;
  let x = theta;
  for (const part of QUARTER_PI) x = fma(octant, part, x);
  const square = f(x * x);
  const sin = fma(f(polynomial(SIN, square) * square), x, x);
  const cos = f(fma(f(polynomial(COS, square) * square), square, -0.5 * square) + 1);
  const [a, b] = octant & 2 ? [cos, -sin] : [sin, cos];
  return octant & 4 ? [-a, -b] : [a, b];
}
