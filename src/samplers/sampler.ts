/** @file What samplers have in common. */

import { type FloatTensor, floats } from "../tensor/index.ts";
import type { Plan, PredictionType, SchedulerConfig, Spacing } from "./schedule.ts";

/** The trained network: its input scaled to unit variance, and its raw output. All [B,C,h,w]. */
export type Network = (sample: FloatTensor, timestep: number) => Promise<FloatTensor>;

/** The clean latents as the network sees them in x at step i of the plan. */
export type Denoiser = (x: FloatTensor, i: number) => Promise<FloatTensor>;

export interface SamplerStep {
  /** From 0. */
  i: number;
  /** The estimate of the clean latents, [B,C,h,w]. */
  denoised: FloatTensor;
}

export interface Sampler {
  readonly name: string;
  /** The name that stable-diffusion-webui shows and writes into pictures. */
  readonly title: string;
  /** Timesteps and sigmas; `spacing` defaults to the config's. */
  plan(config: SchedulerConfig, steps: number, spacing?: Spacing): Plan;
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
}

/**
 * A network as a denoiser. With s = σ and output F of the input x/√(s²+1): epsilon x − sF; v
 * x/(s²+1) − sF/√(s²+1) (Salimans & Ho 2022, appendix D); sample F.
 */
export function parameterize(network: Network, type: PredictionType, { timesteps, sigmas }: Plan): Denoiser {
  return async (x, i) => {
    const s = sigmas[i];
    const scale = 1 / Math.sqrt(s * s + 1);
    const out = await network(
      floats(
        x.shape,
        x.data.map((v) => v * scale),
      ),
      timesteps[i],
    );
    if (type === "sample") return out;
    const [a, b] = type === "epsilon" ? [1, -s] : [scale * scale, -s * scale];
    return floats(
      x.shape,
      x.data.map((v, j) => a * v + b * out.data[j]),
    );
  };
}

/** Classifier-free guidance (Ho & Salimans 2022): unconditional + scale·(conditional − unconditional). */
export function guide(conditional: FloatTensor, unconditional: FloatTensor, scale: number): FloatTensor {
  const u = unconditional.data;
  return floats(
    conditional.shape,
    conditional.data.map((c, i) => u[i] + scale * (c - u[i])),
  );
}

/**
 * Straight steps along dx/dσ = (x − x₀)/σ (Karras et al. 2022, Algorithm 1 without churn). Where a step does not
 * begin at the σ the last one went to, x is scaled from the one to the other at unit variance; so it is at the end,
 * to σ = 0.
 */
export async function* straightSteps(
  denoise: Denoiser,
  x: FloatTensor,
  { sigmas, targets }: Plan,
): AsyncGenerator<SamplerStep, FloatTensor> {
  for (let i = 0; i < sigmas.length; i++) {
    const denoised = await denoise(x, i);
    const ratio = targets[i] / sigmas[i];
    const next = sigmas[i + 1] ?? 0;
    const scale = Math.sqrt((next ** 2 + 1) / (targets[i] ** 2 + 1)); // 1 where the steps meet
    x = floats(
      x.shape,
      x.data.map((v, j) => scale * (denoised.data[j] + (v - denoised.data[j]) * ratio)),
    );
    yield { i, denoised };
  }
  return x;
}
