/**
 * @file Optimisers as graph functions: from a parameter, its gradient and its state to the new ones. The same
 * function updates one tensor inside a whole-step program and a flat shard in a data-parallel one.
 */

import { type Init, input, type Value } from "../graph/index.ts";
import { scalar } from "../ops/index.ts";
import { floats, type HostTensor } from "../tensor/index.ts";

/** Numbers that change from step to step, given to the program as scalar inputs. */
export interface StepScalars {
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
  /** New parameter and state. All values have the parameter's shape; `s` are scalars. */
  update(p: Value, g: Value, state: readonly Value[], s: Record<keyof StepScalars, Value>): [Value, Value[]];
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

const SCALARS: readonly (keyof StepScalars)[] = ["stepSize", "secondCorrection", "decay", "clip", "emaDecay"];

/** The scalar inputs of an update program. */
export function scalarInputs(): Record<keyof StepScalars, Value> {
  return Object.fromEntries(SCALARS.map((k) => [k, input(k, "float32", [])])) as Record<
    keyof StepScalars,
    Value
  >;
}

export function scalarFeeds(s: StepScalars): Record<keyof StepScalars, HostTensor> {
  return Object.fromEntries(SCALARS.map((k) => [k, floats([], [s[k]])])) as Record<
    keyof StepScalars,
    HostTensor
  >;
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
