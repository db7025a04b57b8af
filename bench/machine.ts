/** @file What a measurement was made on. */

import { availableParallelism, cpus } from "node:os";
import process from "node:process";
import { env } from "onnxruntime-common";
import { version } from "../src/platform/index.ts";

/** Processor and versions on one line. Import the package first: ONNX Runtime tells its version when it is loaded. */
export function machine(): string {
  const { common, node = common } = env.versions;
  const [{ model }] = cpus();
  return (
    `${model.trim()}, ${availableParallelism()} cores; fewstep ${version()}, ` +
    `onnxruntime-node ${node}, Node ${process.versions.node}, ${process.platform} ${process.arch}`
  );
}
