export { atomicWrite } from "./atomic.ts";
export { loadSafetensors, type LoadedSafetensors, matchKeys, SafetensorsFile, saveSafetensors, type TensorEntry } from "./safetensors.ts";
