/** @file The public face of the package, the same on every platform. */

export {
  bundledModel,
  type CheckpointOptions,
  type DenoiseStep,
  GeneratedPicture,
  type GenerateOptions,
  type LoadedPart,
  type LoadOptions,
  type Loras,
  type MemoryPlan,
  type ModelInfo,
  type Pair,
  type PictureSettings,
  type Precision,
  type PreviewMethod,
  type PromptWeighting,
  type SamplingSettings,
  SDXL,
  type SizeConditioning,
  samplingMetadata,
  saveCheckpoint,
  type Timings,
  type VaeTiling,
} from "./pipelines/index.ts";
export type { Picture } from "./platform/index.ts";
export type { Device } from "./runtime/index.ts";
export {
  ddim,
  dpmpp2m,
  dpmpp2mSde,
  euler,
  eulerAncestral,
  heun,
  lcm,
  SAMPLERS,
  type Sampler,
  SCHEDULES,
  type Schedule,
  tcd,
  uniPC,
} from "./samplers/index.ts";
export { type FloatTensor, type HostTensor, tensor } from "./tensor/index.ts";
export { saveLora, saveSafetensors } from "./weights/index.ts";
