export { PROMPT_WEIGHTINGS, type PromptWeighting } from "../tokenizers/index.ts";
export { toldSampling } from "./checkpoint.ts";
export type { LoraStrength, Loras } from "./components.ts";
export type { Pair, SizeConditioning } from "./conditioning.ts";
export { type Completeness, componentCompleteness, describeFile } from "./contents.ts";
export { type ConvertOptions, convertModel, type Part } from "./convert.ts";
export { loadWeights, readConfig, readJson, readTokenizer, weightsFile, weightsOf } from "./folder.ts";
export { describeModel, type ModelDescription, type ModelInfo } from "./info.ts";
export { denormalizeLatents, latentStatistics, normalizeLatents } from "./latents.ts";
export { addedStrengths, loraFolder, loraTags, promptLoras, resolveTags } from "./lora_tags.ts";
export { type MemoryPlan, planText } from "./memory.ts";
export type { LoadedPart } from "./networks.ts";
export { GeneratedPicture, type PictureSettings } from "./picture.ts";
export { PRECISIONS, type Precision } from "./precision.ts";
export {
  copyComponent,
  copyTokenizer,
  replaceWeights,
  SDXL_SCHEDULER,
  saveComponent,
  saveJson,
  saveModelIndex,
  saveTokenizer,
  type WeightsDType,
} from "./save.ts";
export * from "./sdxl.ts";
export { type SamplingSettings, samplingMetadata, samplingSettings } from "./settings.ts";
export { VAE_TILINGS, type VaeTiling } from "./tiling.ts";
export { type CheckpointOptions, saveCheckpoint } from "./whole.ts";
