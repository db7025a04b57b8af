/**
 * @file Strategic stochastic sampling of a trajectory consistency model (Zheng et al. 2024, "Trajectory Consistency
 * Distillation"), as diffusers' TCDScheduler: each step goes beyond the next timestep t, to (1 − γ)t, and new noise
 * leads back to t.
 */

import { lcm } from "./lcm.ts";
import { type Sampler, straightSteps } from "./sampler.ts";
import { trainingSigmas } from "./schedule.ts";

/** 0 adds no noise, 1 only noise; diffusers' default, called eta there. */
const GAMMA = 0.3;

export const tcd: Sampler = {
  name: "tcd",
  title: "TCD",
  /** The timesteps are those of LCM. The last step goes to timestep 0, whose noise stays. */
  plan(config, steps, schedule) {
    const plan = lcm.plan(config, steps, schedule);
    const all = trainingSigmas(config);
    const targets = Float32Array.from([...plan.sigmas.subarray(1), all[0]]);
    const next = [...plan.timesteps.subarray(1), 0];
    const downs = Float32Array.from(next, (t) => all[Math.floor((1 - GAMMA) * t)]);
    return { ...plan, targets, downs };
  },
  sample: straightSteps,
};
