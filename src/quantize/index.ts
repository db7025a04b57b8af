export type { Choices, Feeds } from "./calibrate.ts";
export { type Int8Network, int8Network, MINIMUM } from "./int8.ts";
export { int8Layers, weightOfKey, withInt8 } from "./layers.ts";
