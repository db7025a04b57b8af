/** @file Which sampler and schedule a model's scheduler_config.json asks for, by the classes of diffusers. */

import type { Schedule } from "./plan.ts";

export interface UsualSampling {
  /** Name among `SAMPLERS`. */
  sampler: string;
  /** Default: the config's spacing. */
  schedule?: Schedule;
}

const SAMPLER_OF: Readonly<Record<string, string>> = {
  DDIMScheduler: "ddim",
  DPMSolverMultistepScheduler: "dpmpp_2m",
  EulerAncestralDiscreteScheduler: "euler_ancestral",
  HeunDiscreteScheduler: "heun",
  LCMScheduler: "lcm",
  TCDScheduler: "tcd",
  UniPCMultistepScheduler: "uni_pc",
};

/** Of scheduler_config.json; Euler for classes that are not among the samplers. */
export function usualSampling(json: unknown): UsualSampling {
  const config = (json ?? {}) as Record<string, unknown>;
  const { _class_name: name, algorithm_type } = config;
  const isStochastic = name === "DPMSolverMultistepScheduler" && /^sde-/.test(String(algorithm_type));
  return {
    sampler: isStochastic ? "dpmpp_2m_sde" : (SAMPLER_OF[String(name)] ?? "euler"),
    ...(config.use_karras_sigmas === true && { schedule: "karras" }),
    ...(config.use_exponential_sigmas === true && { schedule: "exponential" }),
  };
}
