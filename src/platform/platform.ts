/** @file What differs between Node and the browser. An entry file binds one; the rest asks `platform()`. */

import type { InferenceSession, Tensor } from "onnxruntime-common";

export interface Platform {
  readonly name: "node" | "web";
  /** ONNX Runtime: the session and tensor classes of the build for this place. */
  readonly InferenceSession: typeof InferenceSession;
  readonly Tensor: typeof Tensor;
  /** Cores that this process may use. */
  readonly cores: number;
}

let bound: Platform | undefined;

export function bindPlatform(p: Platform): void {
  bound = p;
}

/** @throws when no entry file was imported. */
export function platform(): Platform {
  if (!bound) throw new Error('no platform is bound: import "fewstep" (Node) before running a program');
  return bound;
}
