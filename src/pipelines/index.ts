export { readJson, readTokenizer, weightsFile, weightsOf } from "./folder.ts";
export { denormalizeLatents, latentStatistics, normalizeLatents } from "./latents.ts";
export {
  copyComponent,
  copyTokenizer,
  SDXL_SCHEDULER,
  saveComponent,
  saveJson,
  saveModelIndex,
  saveTokenizer,
  type WeightsDType,
} from "./save.ts";
export * from "./sdxl.ts";
