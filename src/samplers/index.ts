import * as all from "./all.ts";
import type { Sampler } from "./sampler.ts";

export * from "./all.ts";
export { type UsualSampling, usualSampling } from "./diffusers.ts";
export { boundaryScalings } from "./lcm.ts";
export {
  initialNoise,
  NOISE_RULES,
  type NoiseOptions,
  type NoiseRule,
  noiseStream,
  seedOf,
} from "./noise.ts";
export { type Plan, SCHEDULES, type Schedule, scheduleTitle } from "./plan.ts";
export {
  type Denoiser,
  guide,
  type Network,
  parameterize,
  type Sampler,
  type SamplerStep,
} from "./sampler.ts";
export {
  alphasCumprod,
  PREDICTION_TYPES,
  type PredictionType,
  type SchedulerConfig,
  SPACINGS,
  type Spacing,
  schedulerConfig,
} from "./schedule.ts";

/** All samplers by name. */
export const SAMPLERS: Readonly<Record<string, Sampler>> = Object.fromEntries(
  Object.values(all).map((sampler) => [sampler.name, sampler]),
);
