/** @file Layers with weights, initialised as PyTorch does. Widths in come from the input's shape. */

import { constant, type Dim, type Init, mulDim, type Value } from "../graph/index.ts";
import {
  type ConvOptions,
  concat,
  conv,
  gather,
  groupNormalization,
  layerNormalization,
  project,
} from "../ops/index.ts";
import { floats } from "../tensor/index.ts";
import { located, type Scope } from "./scope.ts";

const ONE: Init = { kind: "constant", value: 1 };
const ZERO: Init = { kind: "constant", value: 0 };

/** U(−1/√fanIn, 1/√fanIn): He et al. 2015 with a = √5, the default of torch.nn. */
export function fanIn(n: number): Init {
  return { kind: "uniform", bound: 1 / Math.sqrt(n) };
}

export interface LinearOptions {
  out: number;
  /** Default true. */
  bias?: boolean;
  init?: Init;
}

/** x·Wᵀ + b. x [..., in] → [..., out]; `weight` [out, in], `bias` [out]. */
export function linear(p: Scope, x: Value, { out, bias = true, init }: LinearOptions): Value {
  return located(p, () => {
    const width = x.shape[x.rank - 1] as number;
    const w = p.param("weight", [out, width], init ?? fanIn(width));
    return project(x, w, bias ? p.param("bias", [out], init ? ZERO : fanIn(width)) : undefined);
  });
}

export interface Conv2dOptions {
  out: number;
  /** Default 3. */
  kernel?: number;
  /** Default 1. */
  stride?: number;
  /** One number for all sides, or top, left, bottom, right. Default (kernel − 1)/2. */
  padding?: number | NonNullable<ConvOptions["pads"]>;
  /** Default true. */
  bias?: boolean;
  init?: Init;
}

/** x [B,C,H,W] → [B,out,h,w]; `weight` [out,C,k,k], `bias` [out]. */
export function conv2d(p: Scope, x: Value, options: Conv2dOptions): Value {
  const { out, kernel = 3, stride = 1, padding = (kernel - 1) / 2, bias = true, init } = options;
  return located(p, () => {
    const width = x.shape[1] as number;
    const fan = fanIn(width * kernel * kernel);
    const w = p.param("weight", [out, width, kernel, kernel], init ?? fan);
    const pads = typeof padding === "number" ? ([padding, padding, padding, padding] as const) : padding;
    return conv(x, w, bias ? p.param("bias", [out], fan) : undefined, { strides: [stride, stride], pads });
  });
}

/** Rows of a 3×3 kernel that meet the same row of a doubled picture, for its even and its odd rows: [2,3] each. */
const MEETING = [
  [1, 0, 0, 0, 1, 1],
  [1, 1, 0, 0, 0, 1],
].map((rows) => constant(floats([2, 3], rows)));

/**
 * A 3×3 convolution of the picture in double size (nearest neighbour), in 4/9 of its products: for even and odd rows and
 * columns a 2×2 convolution of the picture as it is, whose weights are sums of those that meet the same pixel (the kernels of
 * a sub-pixel convolution, Shi et al. 2016).
 * x [B,C,H,W] → [B,out,2H,2W]; `weight` [out,C,3,3], `bias` [out].
 */
export function upsampleConv2d(
  p: Scope,
  x: Value,
  { out, bias = true }: Pick<Conv2dOptions, "out" | "bias">,
): Value {
  return located(p, () => {
    const [B, C, H, W] = x.shape as [Dim, number, Dim, Dim];
    const fan = fanIn(C * 9);
    const w = p.param("weight", [out, C, 3, 3], fan);
    const b = bias ? p.param("bias", [out], fan) : undefined;
    const quarters = [0, 1].flatMap((i) =>
      [0, 1].map((j) => {
        const weight = MEETING[i].matmul(w.matmul(MEETING[j].transpose([1, 0])));
        return conv(x, weight, b, { pads: [1 - i, 1 - j, i, j] });
      }),
    );
    // columns, then rows: one transposition of both has no fast path
    return concat(quarters, 1)
      .reshape([B, 2, 2, mulDim(out, mulDim(H, W))])
      .transpose([0, 1, 3, 2])
      .reshape([B, 2, out, H, mulDim(W, 2)])
      .transpose([0, 2, 3, 1, 4])
      .reshape([B, out, mulDim(H, 2), mulDim(W, 2)]);
  });
}

/** Group normalisation over [B,C,...]. */
export function groupNorm(p: Scope, x: Value, options: { groups: number; eps?: number }): Value {
  const width = x.shape[1] as number;
  return located(p, () =>
    groupNormalization(x, p.param("weight", [width], ONE), p.param("bias", [width], ZERO), options),
  );
}

/** Layer normalisation over the last axis. */
export function layerNorm(p: Scope, x: Value, { eps = 1e-5 }: { eps?: number } = {}): Value {
  const width = x.shape[x.rank - 1] as number;
  return located(p, () =>
    layerNormalization(x, p.param("weight", [width], ONE), p.param("bias", [width], ZERO), eps),
  );
}

/** Rows of a table. ids int64 [...] → [..., width]; `weight` [count, width]. */
export function embedding(
  p: Scope,
  ids: Value,
  { count, width, std = 1 }: { count: number; width: number; std?: number },
): Value {
  return gather(p.param("weight", [count, width], { kind: "normal", std }), ids);
}

/**
 * Sinusoids of a position (Vaswani et al. 2017; diffusers get_timestep_embedding). t [B] → [B, width].
 * Frequencies are 10000^(−i/(width/2 − shift)); with `flip` the cosines come first.
 */
export function timestepEmbedding(
  t: Value,
  width: number,
  { flip = true, shift = 0 }: { flip?: boolean; shift?: number } = {},
): Value {
  const half = width / 2;
  const frequencies = Float32Array.from({ length: half }, (_, i) =>
    Math.exp((-Math.log(10000) * i) / (half - shift)),
  );
  const angles = t.unsqueeze(t.rank).mul(constant(floats([half], frequencies)));
  const [sin, cos] = [angles.sin(), angles.cos()];
  return concat(flip ? [cos, sin] : [sin, cos], t.rank);
}

/** A mask [T,T] that hides later tokens: 0 where visible, the lowest float32 elsewhere. */
export function causalMask(T: number): Value {
  const data = Float32Array.from({ length: T * T }, (_, i) =>
    i % T > Math.floor(i / T) ? -3.4028234663852886e38 : 0,
  );
  return constant(floats([T, T], data));
}
