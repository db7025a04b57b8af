/**
 * @file UniPC of second order (Zhao et al. 2023, Algorithms 1 and 2) that predicts x₀, with B(h) = e^h − 1 and the
 * timesteps of diffusers' UniPCMultistepScheduler. Its predictor UniP is the step of DPM-Solver++(2M).
 */

import type { FloatTensor } from "../tensor/index.ts";
import { dpmpp2m, type Estimate, extrapolated } from "./dpmpp_2m.ts";
import { mix, type Sampler, towards } from "./sampler.ts";

interface Step extends Estimate {
  /** Where it started. */
  x: FloatTensor;
  before?: Estimate;
}

export const uniPC: Sampler = {
  name: "uni_pc",
  title: "UniPC",
  plan: dpmpp2m.plan,
  async *sample(denoise, x, { sigmas, targets }) {
    let last: Step | undefined;
    for (const [i, sigma] of sigmas.entries()) {
      const denoised = await denoise(x, i);
      if (last) x = towards(corrected(last, denoised), last.x, Math.exp(-last.h));
      const step: Step = { x, denoised, h: Math.log(sigma / targets[i]), before: last };
      x = towards(extrapolated(step, last), x, Math.exp(-step.h));
      last = step;
      yield { i, denoised };
    }
    return x;
  },
};

/**
 * What UniC steps towards, once x₀ at the end of the step is estimated too: x₀ + Σ ρₖ Dₖ, where Dₖ = (x₀,ₖ − x₀)/rₖ
 * are the slopes to the estimate before, r₁ = −h₋₁/h, and to that at the end, r₂ = 1. The weights solve
 * Σ ρₖ rₖⁿ⁻¹ = n! φₙ₊₁(−h)/φ₁(−h) for n = 1, 2. Where there is no estimate before, ρ₂ is ½.
 */
function corrected({ denoised, h, before }: Step, end: FloatTensor): FloatTensor {
  if (!before) return mix([0.5, denoised], [0.5, end]);
  const r = -before.h / h;
  const phi1 = Math.expm1(-h) / -h;
  const phi2 = (phi1 - 1) / -h;
  const phi3 = (phi2 - 1 / 2) / -h;
  const rho1 = (phi2 - 2 * phi3) / phi1 / (1 - r);
  const rho2 = phi2 / phi1 - rho1;
  return mix([1 - rho1 / r - rho2, denoised], [rho1 / r, before.denoised], [rho2, end]);
}
