/** @file Node: onnxruntime-node. */

import { InferenceSession, Tensor } from "onnxruntime-node";
import { bindPlatform } from "./platform.ts";

bindPlatform({ name: "node", InferenceSession, Tensor });
