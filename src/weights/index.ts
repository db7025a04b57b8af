export type { Delta, Factor } from "./delta.ts";
export { foreignFormat } from "./foreign.ts";
export {
  kindText,
  SDXL_FAMILY,
  type WeightContent,
  type WeightKind,
  weightContent,
  weightKind,
} from "./kind.ts";
export { clipTable, openClipTable, type UNetLayout, unetTable, type VaeLayout, vaeTable } from "./ldm.ts";
export { type LoraContent, type LoraTarget, loraSummary, readLora, saveLora } from "./lora.ts";
export type { LoraNetwork } from "./lora_keys.ts";
export type { KeyTable } from "./rename.ts";
export {
  compareKeys,
  type KeyDifferences,
  loadSafetensors,
  matchKeys,
  quote,
  readSource,
  SafetensorsFile,
  saveSafetensors,
  type TensorEntry,
  type TensorSource,
  tensorSource,
  writeSafetensors,
} from "./safetensors.ts";
export { tinyVaeTable } from "./tiny.ts";
