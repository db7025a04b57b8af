import { ddim } from "./ddim.ts";
import { euler } from "./euler.ts";
import { boundaryScalings, lcm } from "./lcm.ts";
import type { Sampler } from "./sampler.ts";

export { initialNoise, type NoiseOptions, type NoiseRule, noiseStream, seedOf } from "./noise.ts";
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
  PREDICTION_TYPES,
  type PredictionType,
  type SchedulerConfig,
  SPACINGS,
  type Spacing,
  schedulerConfig,
} from "./schedule.ts";
export { boundaryScalings, ddim, euler, lcm };

/** All samplers by name. */
export const SAMPLERS: Readonly<Record<string, Sampler>> = { euler, ddim, lcm };
