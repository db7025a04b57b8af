/** @file torch's CPU generator: MT19937 (Matsumoto & Nishimura 1998) and the way torch draws from it. */

import { type FloatTensor, floats, sizeOf } from "./host.ts";

const N = 624;
const M = 397;

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

  /** Whole number in [0, n), as torch.randint for n ≤ 2³². */
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

/** Sixteen uniforms to sixteen normals, in float32 as torch's kernel. */
function boxMuller(data: Float32Array, at: number): void {
  const f = Math.fround;
  for (let j = at; j < at + 8; j++) {
    const radius = f(Math.sqrt(f(-2 * f(Math.log(f(1 - data[j]))))));
    const theta = f(f(2 * Math.PI) * data[j + 8]);
    data[j] = f(radius * f(Math.cos(theta)));
    data[j + 8] = f(radius * f(Math.sin(theta)));
  }
}
