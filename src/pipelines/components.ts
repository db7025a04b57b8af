/** @file What a pipeline is made of: a base model, with another UNet perhaps, and adapters on it. */

import { stat } from "node:fs/promises";
import { localPath } from "../hub/index.ts";
import { SAMPLERS, type Sampler } from "../samplers/index.ts";
import { SafetensorsFile, type WeightKind, weightKind } from "../weights/index.ts";
import { type BaseModel, readFolder } from "./base.ts";
import { checkpointUNet, expectKind, readCheckpoint, stem } from "./checkpoint.ts";
import type { WeightSource } from "./folder.ts";
import { lightningFile } from "./lightning.ts";
import { type SamplingSettings, samplingSettings } from "./settings.ts";

/** An adapter on the UNet. */
export interface Lora {
  path: string;
  name: string;
  strength: number;
}

/** A model as it is run: with another UNet perhaps, adapters on it, and the settings of all these. */
export interface Components extends BaseModel {
  loras: readonly Lora[];
  /** Used where nothing else is asked; spacing and prediction type are in `scheduler`. */
  usual: { steps: number; guidance: number; sampler: Sampler };
  /** Steps the weights were distilled for. */
  distilled?: number;
}

export interface ComponentOptions {
  /** A .safetensors file with diffusers' names that replaces the UNet's weights. */
  unet?: string;
  /** LoRA files for the UNet and their strengths; 1 is the strength they were trained at. */
  loras?: Readonly<Record<string, number>>;
  /**
   * Step count that pictures will be asked for. Where the model folder brings few-step weights along, those for
   * this count are taken, and without a count those it names as default; the model's own UNet for other counts,
   * and where `unet` or `loras` are given.
   */
  steps?: number;
}

/**
 * @param model and the files in `options`: paths, or names at the hub (`org/name`, `org/name/file`) that were pulled
 * @throws one sentence when a file is missing, or is something else than it was given as.
 */
export async function readComponents(model: string, options: ComponentOptions): Promise<Components> {
  const path = localPath(model);
  const found = await stat(path).catch(() => undefined);
  const single = found ? found.isFile() : path.endsWith(".safetensors");
  const base = await (single ? readCheckpoint(path) : readFolder(path));
  const { unet, loras, brought } = await addedFiles(base, options);
  for (const { path, strength } of loras)
    if (!Number.isFinite(strength)) throw new Error(`the strength of ${path} is ${strength}; give a number`);
  const network = unet ? await readUNet(unet, base) : undefined;
  const sampling: SamplingSettings = { ...(network ? network.sampling : base.sampling) };
  for (const lora of loras) {
    const added = await readSettings(lora.path, "lora");
    const types = [sampling, added].flatMap((settings) => settings?.predictionType ?? []);
    if (types.length > 1 && types[0] !== types[1])
      throw new Error(`${lora.path} is for a UNet that predicts ${types[1]}; this one predicts ${types[0]}`);
    Object.assign(sampling, added);
  }
  if (brought && sampling.steps !== brought.steps)
    throw new Error(
      `${brought.path} is listed for ${brought.steps} steps, but says ${sampling.steps ?? "nothing"} itself; ` +
        "mend model_index.json",
    );
  const { steps, guidance, sampler = "euler", spacing, predictionType } = sampling;
  const { defaults, scheduler } = base;
  return {
    ...base,
    name: unet ? stem(unet) : base.name,
    loras,
    weights: (part) => (part === "unet" && network ? network.source : base.weights(part)),
    scheduler: {
      ...scheduler,
      timestep_spacing: spacing ?? scheduler.timestep_spacing,
      prediction_type: predictionType ?? scheduler.prediction_type,
    },
    usual: {
      steps: steps ?? defaults.steps,
      guidance: guidance ?? defaults.guidance,
      sampler: SAMPLERS[sampler],
    },
    distilled: steps,
  };
}

/** UNet and adapters beside the base: those asked for, or those that the folder brings along. */
async function addedFiles(
  base: BaseModel,
  { unet, loras, steps }: ComponentOptions,
): Promise<{ unet?: string; loras: Lora[]; brought?: { path: string; steps: number } }> {
  const asked = Object.entries(loras ?? {});
  if (unet !== undefined || asked.length > 0)
    return {
      unet: unet && localPath(unet),
      loras: asked.map(([path, strength]) => ({ path: localPath(path), name: stem(path), strength })),
    };
  const brought = await lightningFile(base.path, base.defaults, steps);
  if (!brought) return { loras: [] };
  await using file = await SafetensorsFile.open(brought.path);
  if (weightKind(file.entries.keys()) !== "lora") return { unet: brought.path, loras: [], brought };
  return { loras: [{ path: brought.path, name: stem(brought.path), strength: 1 }], brought };
}

/** The sampling settings of a file that must hold one kind of weights. */
async function readSettings(path: string, kind: WeightKind): Promise<SamplingSettings | undefined> {
  await using file = await SafetensorsFile.open(path);
  expectKind(file, kind);
  return samplingSettings(file.metadata, path);
}

/** A UNet on its own, or that of a single-file checkpoint. */
async function readUNet(
  path: string,
  base: BaseModel,
): Promise<{ source: WeightSource; sampling?: SamplingSettings }> {
  await using file = await SafetensorsFile.open(path);
  const sampling = samplingSettings(file.metadata, path);
  if (weightKind(file.entries.keys()) === "checkpoint")
    return { source: await checkpointUNet(file, base.unet), sampling };
  expectKind(file, "unet");
  return { source: { path, tensors: file.entries }, sampling };
}
