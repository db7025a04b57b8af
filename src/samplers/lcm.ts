/**
 * @file Multistep sampling of a consistency model (Luo et al. 2023, Algorithm 3; Song et al. 2023), with the
 * timesteps and boundary scalings of diffusers' LCMScheduler.
 */

import { levelsOf, planOf } from "./plan.ts";
import { mix, type Sampler, straightSteps } from "./sampler.ts";
import type { SchedulerConfig } from "./schedule.ts";

/** Steps of the solver that the model was distilled from; those of sampling are among them. */
const ORIGINAL_STEPS = 50;
/** σ of the data, and the factor on timesteps, in c_skip = σ²/(t²+σ²) and c_out = t/√(t²+σ²). */
const SIGMA_DATA = 0.5;
const TIMESTEP_SCALING = 10;

/** c_skip and c_out of a timestep, for x at unit variance: at 0 a consistency model is the identity. */
export function boundaryScalings(timestep: number): { skip: number; out: number } {
  const t = timestep * TIMESTEP_SCALING;
  const variance = t ** 2 + SIGMA_DATA ** 2;
  return { skip: SIGMA_DATA ** 2 / variance, out: t / Math.sqrt(variance) };
}

/** Descending, whatever the spacing: those of the distillation are not spaced as others are. */
function distilledTimesteps({ num_train_timesteps: N }: SchedulerConfig, steps: number): number[] {
  const count = Math.min(ORIGINAL_STEPS, N);
  if (!Number.isInteger(steps) || steps < 1 || steps > count)
    throw new Error(
      `steps is ${steps}; the LCM and TCD samplers take a whole number from 1 to ${count}, or another schedule`,
    );
  const stride = Math.floor(N / count);
  return Array.from({ length: steps }, (_, i) => (count - Math.floor((i * count) / steps)) * stride - 1);
}

export const lcm: Sampler = {
  name: "lcm",
  title: "LCM",
  plan(config, steps, schedule = config.timestep_spacing) {
    const plan = planOf(levelsOf(config, steps, schedule, distilledTimesteps));
    return { ...plan, downs: new Float32Array(steps) };
  },
  /** Estimates the clean latents, and adds new noise for the next, smaller σ. */
  sample(denoise, x, plan, noise) {
    const consistent: typeof denoise = async (x, i) => {
      const { skip, out } = boundaryScalings(plan.timesteps[i]);
      const unit = skip / Math.hypot(plan.sigmas[i], 1); // brings x to unit variance
      return mix([out, await denoise(x, i)], [unit, x]);
    };
    return straightSteps(consistent, x, plan, noise);
  },
};
