/**
 * @file Optimisers as graph functions: from a parameter, its gradient and its state to the new ones. The same
 * function updates one tensor inside a whole-step program and a flat shard in a data-parallel one.
 */

import { type Init, input, type Value } from "../graph/index.ts";
import { gemm, scalar } from "../ops/index.ts";
import { floats, type HostTensor, sizeOf } from "../tensor/index.ts";

/** Numbers that change from step to step, given to the program as scalar inputs. */
export interface StepScalars {
  /** Where an optimiser asks for it. */
  learningRate?: number;
  /** Learning rate divided by the first bias correction. */
  stepSize: number;
  /** √(1 − β₂ᵗ), the second bias correction. */
  secondCorrection: number;
  /** 1 − lr·weight decay, for tensors that decay. */
  decay: number;
  /** Factor on gradients: 1, or less when their norm is clipped. */
  clip: number;
  /** Share of the old average in the exponential moving average of the parameters. */
  emaDecay: number;
}

export interface Optimizer {
  /** Names of the state tensors of each parameter, all zero at first. */
  readonly state: readonly string[];
  /** Scalars of step t (from 1) at a learning rate. */
  scalars(t: number, learningRate: number): Omit<StepScalars, "clip" | "emaDecay">;
  /** New parameter and state (the first of `state` that it has). All have the parameter's shape; `s` are scalars. */
  update: Update;
  /** The same for parameters that are matrices (see `matrixOf`) of a known shape, where these are treated apart. */
  updateMatrix?: Update;
}

type Update = (
  p: Value,
  g: Value,
  state: readonly Value[],
  s: Record<keyof StepScalars, Value>,
) => [Value, Value[]];

/**
 * The matrix that a parameter is, as [rows, columns]: linear layers, and kernels with their input side flattened. Tables
 * of embeddings are none, since a step gives gradients to few of their rows.
 */
export function matrixOf(name: string, shape: readonly number[]): [number, number] | undefined {
  if (shape.length < 2 || name.includes("embeddings.")) return undefined;
  return [shape[0], sizeOf(shape) / shape[0]];
}

export interface AdamWOptions {
  /** Default [0.9, 0.999]; SDXL-Lightning's adversarial stages use [0, 0.99]. */
  betas?: readonly [number, number];
  /** Default 1e-8. */
  eps?: number;
  /** Decoupled, multiplied by the learning rate. Default 0.01. */
  weightDecay?: number;
}

/** AdamW (Loshchilov & Hutter 2019, Algorithm 2), in the arithmetic of torch.optim.AdamW. */
export function adamw({
  betas: [b1, b2] = [0.9, 0.999],
  eps = 1e-8,
  weightDecay = 0.01,
}: AdamWOptions = {}): Optimizer {
  return {
    state: b1 === 0 ? ["exp_avg_sq"] : ["exp_avg", "exp_avg_sq"], // without β₁ the first moment is the gradient
    scalars: (t, learningRate) => ({
      stepSize: learningRate / (1 - b1 ** t),
      secondCorrection: Math.sqrt(1 - b2 ** t),
      decay: 1 - learningRate * weightDecay,
    }),
    update: (p, g, state, s) => {
      const clipped = g.mul(s.clip);
      const v = state[state.length - 1];
      const m1 = b1 === 0 ? clipped : state[0].mul(b1).add(clipped.mul(1 - b1));
      const v1 = v.mul(b2).add(clipped.mul(clipped).mul(1 - b2));
      const denominator = v1.sqrt().div(s.secondCorrection).add(eps);
      const next = p.mul(s.decay).sub(m1.div(denominator).mul(s.stepSize));
      return [next, b1 === 0 ? [v1] : [m1, v1]];
    },
  };
}

export interface MuonOptions extends AdamWOptions {
  /** Of the matrices. Default 0.95. */
  momentum?: number;
}

/**
 * Muon (Jordan et al. 2024) for matrices: the momentum, with Nesterov's look-ahead, is brought to the nearest matrix
 * whose singular values are all about 1, so that rare directions learn as fast as common ones. Its length is that of
 * AdamW's steps (Liu et al. 2025, 0.2·√max(rows, columns)), so that one learning rate serves both. Everything else is
 * updated by AdamW. In the arithmetic of torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`, but in float32.
 */
export function muon({ momentum = 0.95, ...options }: MuonOptions = {}): Optimizer {
  const other = adamw(options);
  return {
    ...other,
    scalars: (t, learningRate) => ({ ...other.scalars(t, learningRate), learningRate }),
    updateMatrix: (p, g, state, s) => {
      const [rows, columns] = p.shape as number[];
      const clipped = g.mul(s.clip).mul(1 - momentum);
      const m = state[0].mul(momentum).add(clipped); // the place of AdamW's first state, which matrices do not have
      const step = orthogonalised(clipped.add(m.mul(momentum))).mul(0.2 * Math.sqrt(Math.max(rows, columns)));
      return [p.mul(s.decay).sub(step.mul(s.learningRate)), [m]];
    },
  };
}

/** Coefficients and number of the Newton-Schulz iterations of Muon. */
const [A, B, C] = [3.4445, -4.775, 2.0315];
const ITERATIONS = 5;

/**
 * f(σ) for the singular values σ of x/‖x‖, where f is ITERATIONS times σ ← Aσ + Bσ³ + Cσ⁵: all come near 1.
 *
 * With the Gram matrix G of the shorter side an iteration is x ← (A + R)x, where R = BG + CG²; all factors are
 * polynomials of G and commute, so that x itself is multiplied once: (α + T)x with α = Aᵏ. For kernels, whose input
 * side is long, this is less than half of the arithmetic.
 */
function orthogonalised(x: Value): Value {
  const [rows, columns] = x.shape as number[];
  const tall = rows > columns;
  const unit = x.div(x.mul(x).sum().sqrt().add(1e-7));
  let gram = gemm(unit, unit, tall ? { transA: true } : { transB: true });
  let sum: Value | undefined;
  for (let k = 0; k < ITERATIONS; k++) {
    const r = gram.mul(B).add(gram.matmul(gram).mul(C));
    // (α + T)(A + R) = αA + αR + AT + TR
    const grown = r.mul(A ** k);
    sum = sum ? grown.add(sum.mul(A)).add(sum.matmul(r)) : grown;
    if (k + 1 === ITERATIONS) break;
    const once = gram.mul(A).add(r.matmul(gram));
    gram = once.mul(A).add(once.matmul(r));
  }
  return unit.mul(A ** ITERATIONS).add(tall ? unit.matmul(sum!) : sum!.matmul(unit));
}

export interface LearningRate {
  /** Peak learning rate. */
  peak: number;
  /** Steps of linear warm-up from zero. Default 0. */
  warmup?: number;
  /** "cosine" falls to `final`·peak at the last step; "constant" stays. Default "constant". */
  decay?: "constant" | "cosine";
  /** Steps that the cosine takes, the last ones of the run. Default: all after the warm-up. */
  decaySteps?: number;
  /** Share of the peak at the end of a cosine. Default 0. */
  final?: number;
}

/**
 * Learning rate of step t (from 0) of `total`: a cosine (Loshchilov & Hutter 2017), or with `decaySteps` a plateau
 * before it (Zhai et al. 2022), so that a run can be prolonged without being planned again.
 */
export function learningRateAt(
  { peak, warmup = 0, decay = "constant", decaySteps, final = 0 }: LearningRate,
  t: number,
  total: number,
): number {
  if (t < warmup) return (peak * (t + 1)) / warmup;
  if (decay === "constant") return peak;
  const from = Math.max(warmup, decaySteps === undefined ? warmup : total - decaySteps);
  const progress = Math.min(1, Math.max(0, (t - from) / Math.max(1, total - from)));
  return peak * (final + (1 - final) * 0.5 * (1 + Math.cos(Math.PI * progress)));
}

const SCALARS: readonly (keyof StepScalars)[] = [
  "learningRate",
  "stepSize",
  "secondCorrection",
  "decay",
  "clip",
  "emaDecay",
];

/** The scalar inputs of an update program. */
export function scalarInputs(): Record<keyof StepScalars, Value> {
  return Object.fromEntries(SCALARS.map((k) => [k, input(k, "float32", [])])) as Record<
    keyof StepScalars,
    Value
  >;
}

export function scalarFeeds(s: Partial<StepScalars>): Record<string, HostTensor> {
  return Object.fromEntries(Object.entries(s).map(([k, v]) => [k, floats([], [v as number])]));
}

/** Factor that brings a gradient down to the norm `max`, as torch's clip_grad_norm_. `squares` is its squared norm. */
export function clipFactorValue(squares: Value, max: number): Value {
  return scalar(max, "float32").div(squares.sqrt().add(1e-6)).minimum(1);
}

/** Values of a parameter before training, from uniform numbers in [0, 1). */
export function initialValues(shape: readonly number[], init: Init, random: () => number): HostTensor {
  const out = floats(shape);
  if (init.kind === "constant") out.data.fill(init.value);
  else if (init.kind === "uniform")
    for (let i = 0; i < out.data.length; i++) out.data[i] = (2 * random() - 1) * init.bound;
  else
    for (let i = 0; i < out.data.length; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - random())); // Box & Muller 1958
      out.data[i] = init.std * radius * Math.cos(2 * Math.PI * random());
    }
  return out;
}

/** The optimiser that a recipe names. */
export function optimizerOf({ type, ...options }: { type?: "adamw" | "muon" } & MuonOptions): Optimizer {
  return type === "muon" ? muon(options) : adamw(options);
}
