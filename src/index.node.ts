/** @file The package in Node: binds ONNX Runtime for Node and the file system. */

import "./platform/node.ts";

export { type Pulled, type PullOptions, pull } from "./hub/index.ts";
export * from "./main.ts";
