export type { Choices, Feeds } from "./calibrate.ts";
export { int8Network, MINIMUM } from "./int8.ts";
export { int8Layers, weightOfKey, withInt8 } from "./layers.ts";
