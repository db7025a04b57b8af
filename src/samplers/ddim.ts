/**
 * @file DDIM without noise (Song et al. 2021, equation 12 with σ = 0), with the timesteps of diffusers'
 * DDIMScheduler. In terms of σ it is Euler; it differs in where its steps go and end.
 */

import { type Sampler, straightSteps } from "./sampler.ts";
import { alphasCumprod, roundHalfEven, sigmaOf, timestepsOf } from "./schedule.ts";

export const ddim: Sampler = {
  name: "ddim",
  title: "DDIM",
  plan(config, steps, spacing = config.timestep_spacing) {
    const all = Float32Array.from(alphasCumprod(config), sigmaOf);
    const N = config.num_train_timesteps;
    if (config.rescale_betas_zero_snr) all[N - 1] = 2 ** 20; // for the infinite one of diffusers' DDIM
    const timesteps = Float32Array.from(
      timestepsOf(config, steps, spacing).map((t) => Math.min(N - 1, roundHalfEven(t))),
    );
    const stride = Math.floor(N / steps);
    const end = config.set_alpha_to_one ? 0 : all[0];
    const sigmas = timesteps.map((t) => all[t]);
    return {
      timesteps,
      sigmas,
      targets: timesteps.map((t) => (t >= stride ? all[t - stride] : end)),
      initNoiseSigma: Math.sqrt(sigmas[0] ** 2 + 1),
    };
  },
  sample: straightSteps,
};
