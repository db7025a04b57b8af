/** @file Euler (Karras et al. 2022), with the sigmas of diffusers' EulerDiscreteScheduler. */

import { type Sampler, straightSteps } from "./sampler.ts";
import { alphasCumprod, sigmaOf, timestepsOf } from "./schedule.ts";

export const euler: Sampler = {
  name: "euler",
  title: "Euler",
  plan(config, steps, spacing = config.timestep_spacing) {
    const all = Float32Array.from(alphasCumprod(config), sigmaOf);
    const timesteps = Float32Array.from(timestepsOf(config, steps, spacing));
    const sigmas = timesteps.map((t) => {
      const at = Math.min(t, all.length - 1); // leading spacing with an offset may leave the range
      const below = Math.floor(at);
      return below === at ? all[below] : all[below] + (at - below) * (all[below + 1] - all[below]);
    });
    const largest = Math.max(...sigmas);
    return {
      timesteps,
      sigmas,
      targets: Float32Array.from([...sigmas.subarray(1), 0]),
      initNoiseSigma: spacing === "leading" ? Math.sqrt(largest * largest + 1) : largest,
    };
  },
  sample: straightSteps,
};
