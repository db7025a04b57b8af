/**
 * @file DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", Algorithm 2), with the timesteps of diffusers'
 * DPMSolverMultistepScheduler. λ = −log σ, h is the length of a step in λ, r = h₋₁/h.
 */

import type { FloatTensor } from "../tensor/index.ts";
import { levelsOf, planOf, roundHalfEven, timestepsOf } from "./plan.ts";
import { mix, type Sampler, towards } from "./sampler.ts";
import type { SchedulerConfig, Spacing } from "./schedule.ts";

/** Whole timesteps. Except for trailing ones, there is one more than steps; the last is left out. */
function wholeTimesteps(config: SchedulerConfig, steps: number, spacing: Spacing): number[] {
  if (spacing === "trailing") return timestepsOf(config, steps, spacing);
  return timestepsOf(config, steps + 1, spacing)
    .slice(0, -1)
    .map(roundHalfEven);
}

/** x₀ at the start of a step, and the length of that step. */
export interface Estimate {
  denoised: FloatTensor;
  h: number;
}

/**
 * x₀ as two estimates extrapolate it to the middle of a step: D = (1 + 1/2r) x₀ − (1/2r) x₀₋₁; the estimate itself
 * without an earlier one, and in the step that ends without noise.
 */
export function extrapolated({ denoised, h }: Estimate, before?: Estimate): FloatTensor {
  if (!before || h === Number.POSITIVE_INFINITY) return denoised;
  const share = h / before.h / 2;
  return mix([1 + share, denoised], [-share, before.denoised]);
}

/**
 * The steps of the equation with noise η: 0 is the ordinary one, x = (σ′/σ) x + (1 − e^−h) D, and 1 the reverse
 * diffusion, x = (σ′/σ) e^−h x + (1 − e^−2h) D + σ′ √(1 − e^−2h) noise.
 */
export function secondOrder(eta: number): Sampler["sample"] {
  return async function* (denoise, x, { sigmas, targets }, noise) {
    let before: Estimate | undefined;
    for (const [i, sigma] of sigmas.entries()) {
      const target = targets[i];
      const denoised = await denoise(x, i);
      const step = { denoised, h: Math.log(sigma / target) };
      x = towards(extrapolated(step, before), x, Math.exp(-(1 + eta) * step.h));
      if (eta > 0 && target > 0)
        x = mix([1, x], [target * Math.sqrt(-Math.expm1(-2 * eta * step.h)), noise()]);
      before = step;
      yield { i, denoised };
    }
    return x;
  };
}

export const dpmpp2m: Sampler = {
  name: "dpmpp_2m",
  title: "DPM++ 2M",
  plan(config, steps, schedule = config.timestep_spacing) {
    const most = config.num_train_timesteps - 1 - config.steps_offset; // so that no two timesteps are the same
    if (!Number.isInteger(steps) || steps < 1 || steps > most)
      throw new Error(`steps is ${steps}; multistep samplers take a whole number from 1 to ${most}`);
    const levels = levelsOf(config, steps, schedule, wholeTimesteps);
    return planOf({ ...levels, timesteps: levels.timesteps.map((t) => roundHalfEven(t)) });
  },
  sample: secondOrder(0),
};
