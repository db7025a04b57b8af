/** @file What the server and its picture workers say to each other. */

import type { PictureSettings, Timings } from "../pipelines/index.ts";
import type { Picture } from "../platform/index.ts";
import type { Device } from "../runtime/index.ts";
import type { PictureRequest } from "./jobs.ts";

/** Given to a worker when it starts. */
export interface WorkerSetup {
  device: Device;
  threads: number;
  /** Of weights that may be loaded at a time. */
  memoryLimit: number;
}

/** A model with adapters, as it is loaded. */
export interface LoadSpec {
  /** The same for what is loaded in the same way. */
  key: string;
  /** Folder or file. */
  path: string;
  /** Step count whose few-step weights are taken. */
  steps?: number;
  /** Files and strengths. */
  loras: Readonly<Record<string, number>>;
  /** Of its weights. */
  bytes: number;
}

/** Without a request the model is only loaded. */
export interface PictureTask {
  load: LoadSpec;
  request?: PictureRequest;
  /** See `Stop`. */
  stop?: SharedArrayBuffer;
}

export interface PictureResult {
  pictures: readonly { picture: Picture; settings: PictureSettings }[];
  warnings: readonly string[];
  seconds: Timings;
}
