/**
 * @file SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++"), as diffusers' DPMSolverMultistepScheduler with the
 * algorithm sde-dpmsolver++. k-diffusion's differs in its noise, which comes from a Brownian tree.
 */

import { dpmpp2m, secondOrder } from "./dpmpp_2m.ts";
import type { Sampler } from "./sampler.ts";

export const dpmpp2mSde: Sampler = {
  name: "dpmpp_2m_sde",
  title: "DPM++ 2M SDE",
  plan: dpmpp2m.plan,
  sample: secondOrder(1),
};
