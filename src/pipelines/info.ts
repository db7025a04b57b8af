/** @file What a model is like, told from its configs: no weights are loaded. */

import { stat } from "node:fs/promises";
import { rootScope } from "../nn/index.ts";
import { SAMPLERS, type Sampler, type Schedule, type SchedulerConfig } from "../samplers/index.ts";
import { NETWORKS } from "./base.ts";
import { type Components, readComponents } from "./components.ts";
import { mostClipSkip } from "./encode.ts";
import { GRAPHS, isSmall } from "./programs.ts";

export interface ModelInfo {
  /** Latent side the model was trained at. */
  sampleSize: number;
  /** Pixels per latent position. */
  vaeScaleFactor: number;
  /** Layers of the text encoders that can be skipped. */
  mostClipSkip: number;
  /** What pictures are made with where nothing else is asked. */
  defaults: { steps: number; guidance: number; sampler: Sampler; schedule: Schedule };
  /** The noise that it was trained with. */
  scheduler: SchedulerConfig;
  /** Steps that the weights were distilled for, as their file says; undefined for others. */
  distilled?: number;
}

export interface ModelDescription extends ModelInfo {
  name: string;
  /** Step counts that the folder brings weights of their own along for, and the one that is usual. */
  fewSteps: { counts: readonly number[]; usual?: number };
  /** How the model's own UNet is used: without few-step weights, for other step counts. */
  base: { steps: number; guidance: number; sampler: Sampler; distilled: boolean };
  /** Of the files with its weights. */
  bytes: number;
  /** Whether its UNet is too small for many threads, so that several pictures at a time use a machine best. */
  small: boolean;
}

export function modelInfo(parts: Components): ModelInfo {
  const { factor, sampleSize = 1024 } = parts.vae;
  return {
    sampleSize: parts.unet.sample_size ?? sampleSize / factor,
    vaeScaleFactor: factor,
    mostClipSkip: mostClipSkip(parts),
    defaults: parts.usual,
    scheduler: parts.scheduler,
    distilled: parts.distilled,
  };
}

/**
 * Describes a model folder in diffusers layout, or a single-file checkpoint.
 * @throws one sentence when a component is missing.
 */
export async function describeModel(path: string): Promise<ModelDescription> {
  const parts = await readComponents(path, {});
  const { lightning, steps, guidance } = parts.defaults;
  const sampler = SAMPLERS[parts.usualSampling.sampler];
  const sources = await Promise.all(NETWORKS.map((network) => parts.weights(network)));
  const tensors = sources.flatMap((source) => [...source.tensors.values()]);
  const files = new Set(tensors.flatMap((t) => ("path" in t ? t.path : [])));
  const sizes = await Promise.all([...files].map(async (file) => (await stat(file)).size));
  return {
    ...modelInfo(parts),
    name: parts.name,
    fewSteps: { counts: Object.keys(lightning?.files ?? {}).map(Number), usual: lightning?.default },
    base: lightning
      ? { steps, guidance, sampler, distilled: false }
      : { ...parts.usual, distilled: parts.distilled !== undefined },
    bytes: sizes.reduce((sum, size) => sum + size, 0),
    small: isSmall(GRAPHS.unet(parts, rootScope()), parts),
  };
}
