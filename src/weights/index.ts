export {
  loadSafetensors,
  matchKeys,
  SafetensorsFile,
  saveSafetensors,
} from "./safetensors.ts";
