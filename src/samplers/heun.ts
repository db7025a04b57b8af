/**
 * @file Heun's second-order method (Karras et al. 2022, Algorithm 1), with the sigmas of diffusers'
 * HeunDiscreteScheduler. Every step but the last evaluates the network twice.
 */

import { euler } from "./euler.ts";
import { mix, type Sampler, towards } from "./sampler.ts";

export const heun: Sampler = {
  name: "heun",
  title: "Heun",
  plan: euler.plan,
  evaluations: (steps) => 2 * steps - 1,
  async *sample(denoise, x, { sigmas, targets }) {
    for (const [i, sigma] of sigmas.entries()) {
      const target = targets[i];
      const denoised = await denoise(x, i);
      const end = towards(denoised, x, target / sigma);
      if (target > 0) {
        const there = await denoise(end, i + 1);
        const half = (target - sigma) / 2; // of the slopes (x − x₀)/σ at both ends
        x = mix(
          [1 + half / sigma, x],
          [-half / sigma, denoised],
          [half / target, end],
          [-half / target, there],
        );
      } else x = end;
      yield { i, denoised };
    }
    return x;
  },
};
