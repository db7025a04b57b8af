export {
  type LoadedSafetensors,
  loadSafetensors,
  matchKeys,
  SafetensorsFile,
  saveSafetensors,
  type TensorEntry,
} from "./safetensors.ts";
