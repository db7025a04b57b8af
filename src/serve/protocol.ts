/** @file What the server and its picture workers say to each other. */

import type { Loras, PictureSettings, Precision, Timings } from "../pipelines/index.ts";
import type { Picture } from "../platform/index.ts";
import type { Device } from "../runtime/index.ts";
import type { PictureRequest, Step } from "./jobs.ts";

/** Given to a worker when it starts. */
export interface WorkerSetup {
  device: Device;
  /** Default "auto". */
  precision?: Precision;
  threads: number;
  /** Of weights that may be loaded at a time. */
  memoryLimit: number;
}

/** A model as it is loaded. */
export interface LoadSpec {
  /** The same for what is loaded in the same way. */
  key: string;
  /** Folder or file. */
  path: string;
  /** Step count whose few-step weights are taken; none: the model's own. */
  steps?: number;
  /** Of its weights, and of the adapters that are asked for. */
  bytes: number;
}

/** Without a request the model is only loaded. */
export interface PictureTask {
  load: LoadSpec;
  /** Its prompt is without tags. */
  request?: PictureRequest;
  /** Files and strengths of the adapters that it names. */
  loras?: Loras;
  /** See `Stop`. */
  stop?: SharedArrayBuffer;
}

/** What a worker tells on its way: how far a picture is, or what takes time while a model is loaded. */
export type Note = Step | { notice: string };

export interface PictureResult {
  pictures: readonly { picture: Picture; settings: PictureSettings }[];
  warnings: readonly string[];
  seconds: Timings;
}
