export { kindText, type WeightKind, weightKind } from "./kind.ts";
export { clipTable, openClipTable, type UNetLayout, unetTable, type VaeLayout, vaeTable } from "./ldm.ts";
export { type LoraModule, loraSummary, readLora, saveLora } from "./lora.ts";
export type { KeyTable } from "./rename.ts";
export {
  loadSafetensors,
  matchKeys,
  quote,
  SafetensorsFile,
  saveSafetensors,
  type TensorEntry,
} from "./safetensors.ts";
