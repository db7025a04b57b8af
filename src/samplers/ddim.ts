/**
 * @file DDIM without noise (Song et al. 2021, equation 12 with σ = 0), with the timesteps of diffusers'
 * DDIMScheduler. In terms of σ it is Euler; it differs in where its steps go and end.
 */

import { isSpacing, levelsOf, planOf, roundHalfEven, timestepsOf } from "./plan.ts";
import { type Sampler, straightSteps } from "./sampler.ts";
import { trainingSigmas } from "./schedule.ts";

export const ddim: Sampler = {
  name: "ddim",
  title: "DDIM",
  plan(config, steps, schedule = config.timestep_spacing) {
    if (!isSpacing(schedule)) return planOf(levelsOf(config, steps, schedule));
    const all = trainingSigmas(config);
    const N = config.num_train_timesteps;
    if (config.rescale_betas_zero_snr) all[N - 1] = 2 ** 20; // for the infinite one of diffusers' DDIM
    const timesteps = Float32Array.from(
      timestepsOf(config, steps, schedule).map((t) => Math.min(N - 1, roundHalfEven(t))),
    );
    const stride = Math.floor(N / steps);
    const end = config.set_alpha_to_one ? 0 : all[0];
    const targets = timesteps.map((t) => (t >= stride ? all[t - stride] : end));
    return { ...planOf({ timesteps, sigmas: timesteps.map((t) => all[t]) }), targets };
  },
  sample: straightSteps,
};
