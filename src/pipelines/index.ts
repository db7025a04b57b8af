export { readJson, readTokenizer, weightsFile, weightsOf } from "./folder.ts";
export * from "./sdxl.ts";
