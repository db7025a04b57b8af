export { atomicWrite, removeAbandoned, removeUnfinished } from "./files.ts";
export { encodePng, type Picture, readPlanes, writePlanes } from "./image.ts";
export { formatParameters, type GenerationParameters, parseParameters } from "./parameters.ts";
export { bindPlatform, type Platform, platform } from "./platform.ts";
export { addPngText, isPng, type PngInfo, type PngText, readPng } from "./png.ts";
