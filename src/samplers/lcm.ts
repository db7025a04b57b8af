/**
 * @file Multistep sampling of a consistency model (Luo et al. 2023, Algorithm 3; Song et al. 2023), with the
 * timesteps and boundary scalings of diffusers' LCMScheduler.
 */

import { floats } from "../tensor/index.ts";
import type { Sampler } from "./sampler.ts";
import { alphasCumprod, sigmaOf } from "./schedule.ts";

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

export const lcm: Sampler = {
  name: "lcm",
  title: "LCM",
  plan(config, steps) {
    const { num_train_timesteps: N } = config;
    const count = Math.min(ORIGINAL_STEPS, N);
    if (!Number.isInteger(steps) || steps < 1 || steps > count)
      throw new Error(`steps is ${steps}; the LCM sampler takes a whole number from 1 to ${count}`);
    const stride = Math.floor(N / count);
    const timesteps = Float32Array.from(
      { length: steps },
      (_, i) => (count - Math.floor((i * count) / steps)) * stride - 1,
    );
    const alphas = alphasCumprod(config);
    const sigmas = timesteps.map((t) => sigmaOf(alphas[t]));
    return {
      timesteps,
      sigmas,
      targets: Float32Array.from([...sigmas.subarray(1), 0]),
      initNoiseSigma: Math.sqrt(sigmas[0] ** 2 + 1),
    };
  },
  /** Estimates the clean latents, and adds new noise for the next, smaller σ. */
  async *sample(denoise, x, { timesteps, sigmas, targets }, noise) {
    for (const [i, sigma] of sigmas.entries()) {
      const { skip, out } = boundaryScalings(timesteps[i]);
      const unit = skip / Math.sqrt(sigma ** 2 + 1); // brings x to unit variance
      const clean = await denoise(x, i);
      const denoised = floats(
        x.shape,
        clean.data.map((v, j) => out * v + unit * x.data[j]),
      );
      if (targets[i] > 0) {
        const { data } = noise();
        x = floats(
          x.shape,
          denoised.data.map((v, j) => v + targets[i] * data[j]),
        );
      } else x = denoised;
      yield { i, denoised };
    }
    return x;
  },
};
