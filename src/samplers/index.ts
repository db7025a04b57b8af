import { ddim } from "./ddim.ts";
import { euler } from "./euler.ts";
import type { Sampler } from "./sampler.ts";

export { initialNoise, type NoiseOptions, type NoiseRule, seedOf } from "./noise.ts";
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
  type Plan,
  type PredictionType,
  type SchedulerConfig,
  type Spacing,
  schedulerConfig,
} from "./schedule.ts";
export { ddim, euler };

/** All samplers by name. */
export const SAMPLERS: Readonly<Record<string, Sampler>> = { euler, ddim };
