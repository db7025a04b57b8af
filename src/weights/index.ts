export { kindText, type WeightKind, weightKind } from "./kind.ts";
export { type LoraModule, loraSummary, readLora, saveLora } from "./lora.ts";
export {
  loadSafetensors,
  matchKeys,
  quote,
  SafetensorsFile,
  saveSafetensors,
  type TensorEntry,
} from "./safetensors.ts";
