import { Value, type ValueMethods } from "../graph/index.ts";
import { elementwiseMethods } from "./elementwise.ts";
import { matmulMethods } from "./matmul.ts";
import { movementMethods } from "./movement.ts";
import { reduceMethods } from "./reduce.ts";

Object.assign(Value.prototype, {
  ...elementwiseMethods,
  ...movementMethods,
  ...reduceMethods,
  ...matmulMethods,
} satisfies ValueMethods);

export * from "./activation.ts";
export * from "./attention.ts";
export { type ConvOptions, conv } from "./conv.ts";
export { equal, less, relu, scalar, where } from "./elementwise.ts";
export { convInt8, projectInt8 } from "./int8.ts";
export { gatherTokens, gemm, project } from "./matmul.ts";
export { concat, gather, resizeNearest, rowsOf } from "./movement.ts";
export * from "./norm.ts";
export { logSoftmax } from "./reduce.ts";
