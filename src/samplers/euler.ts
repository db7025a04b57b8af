/** @file Euler (Karras et al. 2022), with the sigmas of diffusers' EulerDiscreteScheduler. */

import { levelsOf, planOf } from "./plan.ts";
import { type Sampler, straightSteps } from "./sampler.ts";

export const euler: Sampler = {
  name: "euler",
  title: "Euler",
  /** Starts at unit variance where diffusers or, for the schedules that come from there, ComfyUI does. */
  plan(config, steps, schedule = config.timestep_spacing) {
    const levels = levelsOf(config, steps, schedule);
    const unitVariance = ["leading", "normal", "simple", "sgm_uniform"].includes(schedule);
    return planOf(levels, unitVariance ? undefined : levels.sigmas[0]);
  },
  sample: straightSteps,
};
