/**
 * @file Euler with ancestral noise, as k-diffusion's sample_euler_ancestral and diffusers'
 * EulerAncestralDiscreteScheduler: from σ to σ′ the noise that a Markov chain would add, σ_up² = σ′²(σ² − σ′²)/σ²
 * (Ho et al. 2020, section 3.2, in terms of σ; Song et al. 2021, equation 16 with η = 1).
 */

import { euler } from "./euler.ts";
import { type Sampler, straightSteps } from "./sampler.ts";

export const eulerAncestral: Sampler = {
  name: "euler_ancestral",
  title: "Euler a",
  plan(config, steps, schedule) {
    const plan = euler.plan(config, steps, schedule);
    const { sigmas, targets } = plan;
    return { ...plan, downs: targets.map((target, i) => target ** 2 / sigmas[i]) }; // √(σ′² − σ_up²)
  },
  sample: straightSteps,
};
