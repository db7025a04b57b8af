/** @file Node: onnxruntime-node. */

import { availableParallelism } from "node:os";
import { env, InferenceSession, Tensor } from "onnxruntime-node";
import { bindPlatform } from "./platform.ts";

env.logLevel = "fatal"; // errors are thrown
bindPlatform({ name: "node", InferenceSession, Tensor, cores: availableParallelism() });
