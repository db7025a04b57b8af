export {
  atomically,
  atomicWrite,
  cacheFolder,
  fileHash,
  hasWriterEnded,
  makeFolder,
  removeAbandoned,
  removeTemporaryFolder,
  removeUnfinished,
  temporaryFolder,
  withTemporary,
  writerMark,
} from "./files.ts";
export { encodeLossy, encodePng, type Picture, readPlanes, writePlanes } from "./image.ts";
export { availableMemory } from "./memory.ts";
export { formatParameters, parseParameters } from "./parameters.ts";
export { platform } from "./platform.ts";
export { addPngText, isPng, readPng } from "./png.ts";
export { endThread, startThread } from "./thread.ts";
export { version } from "./version.ts";
