/** @file What samplers have in common. */

import { type FloatTensor, floats } from "../tensor/index.ts";
import type { Plan, Schedule } from "./plan.ts";
import type { PredictionType, SchedulerConfig } from "./schedule.ts";

/** The trained network: its input scaled to unit variance, and its raw output. All [B,C,h,w]. */
export type Network = (sample: FloatTensor, timestep: number) => Promise<FloatTensor>;

/** The clean latents as the network sees them in x, whose noise is that of step i of the plan. */
export type Denoiser = (x: FloatTensor, i: number) => Promise<FloatTensor>;

export interface SamplerStep {
  /** From 0. */
  i: number;
  /** The estimate of the clean latents, [B,C,h,w]. */
  denoised: FloatTensor;
}

export interface Sampler {
  /** As k-diffusion and ComfyUI spell it. */
  readonly name: string;
  /** The name that stable-diffusion-webui shows and writes into pictures. */
  readonly title: string;
  /** Timesteps and sigmas; `schedule` defaults to the spacing of the config. */
  plan(config: SchedulerConfig, steps: number, schedule?: Schedule): Plan;
  /**
   * Walks the plan from x; yields after every step and returns the latents. `noise` draws more unit noise of the
   * shape of x, for samplers that add some.
   */
  sample(
    denoise: Denoiser,
    x: FloatTensor,
    plan: Plan,
    noise: () => FloatTensor,
  ): AsyncGenerator<SamplerStep, FloatTensor>;
  /** Network evaluations of a number of steps, where they differ. */
  evaluations?(steps: number): number;
}

/** The sum of tensors of one shape, each times its factor. */
export function mix(...terms: readonly (readonly [factor: number, tensor: FloatTensor])[]): FloatTensor {
  const sum = new Float64Array(terms[0][1].data.length);
  for (const [factor, { data }] of terms) for (let i = 0; i < sum.length; i++) sum[i] += factor * data[i];
  return floats(terms[0][1].shape, new Float32Array(sum));
}

/** From x straight towards a goal; `ratio` of the way is left. */
export function towards(goal: FloatTensor, x: FloatTensor, ratio: number): FloatTensor {
  return mix([1 - ratio, goal], [ratio, x]);
}

/**
 * A network as a denoiser. With s = σ and output F of the input x/√(s²+1): epsilon x − sF; v
 * x/(s²+1) − sF/√(s²+1) (Salimans & Ho 2022, appendix D); sample F.
 */
export function parameterize(network: Network, type: PredictionType, { timesteps, sigmas }: Plan): Denoiser {
  return async (x, i) => {
    const s = sigmas[i];
    const scale = 1 / Math.sqrt(s * s + 1);
    const out = await network(mix([scale, x]), timesteps[i]);
    if (type === "sample") return out;
    return type === "epsilon" ? mix([1, x], [-s, out]) : mix([scale * scale, x], [-s * scale, out]);
  };
}

/**
 * Classifier-free guidance (Ho & Salimans 2022): unconditional + scale·(conditional − unconditional). `rescale` is φ
 * of Lin et al. 2024, equations 15 and 16: that share of each picture gets the deviation of its conditional part.
 */
export function guide(
  conditional: FloatTensor,
  unconditional: FloatTensor,
  scale: number,
  rescale = 0,
): FloatTensor {
  const guided = mix([1 - scale, unconditional], [scale, conditional]);
  if (rescale === 0) return guided;
  const size = guided.data.length / guided.shape[0];
  for (let start = 0; start < guided.data.length; start += size) {
    const picture = guided.data.subarray(start, start + size);
    const factor = deviation(conditional.data.subarray(start, start + size)) / deviation(picture);
    for (let i = 0; i < size; i++) picture[i] *= rescale * factor + 1 - rescale;
  }
  return guided;
}

function deviation(data: Float32Array): number {
  const mean = data.reduce((sum, v) => sum + v, 0) / data.length;
  return Math.sqrt(data.reduce((sum, v) => sum + (v - mean) ** 2, 0) / data.length);
}

/**
 * Straight steps along dx/dσ = (x − x₀)/σ (Karras et al. 2022, Algorithm 1 without churn) down to σ_down, and new
 * noise from there up to the target. Where a step does not begin at the σ the last one went to, x is scaled from the
 * one to the other at unit variance; so it is at the end, to σ = 0.
 */
export async function* straightSteps(
  denoise: Denoiser,
  x: FloatTensor,
  { sigmas, targets, downs = targets }: Plan,
  noise: () => FloatTensor,
): AsyncGenerator<SamplerStep, FloatTensor> {
  for (const [i, sigma] of sigmas.entries()) {
    const denoised = await denoise(x, i);
    x = towards(denoised, x, downs[i] / sigma);
    const added = targets[i] ** 2 - downs[i] ** 2; // variance
    if (added > 0) x = mix([1, x], [Math.sqrt(added), noise()]);
    const next = sigmas[i + 1] ?? 0;
    if (next !== targets[i]) x = mix([Math.sqrt((next ** 2 + 1) / (targets[i] ** 2 + 1)), x]);
    yield { i, denoised };
  }
  return x;
}
