export * from "./dim.ts";
export * from "./grad.ts";
export * from "./graph.ts";
export { peakBytes } from "./memory.ts";
export { hoist, inParts } from "./parts.ts";
export * from "./value.ts";
