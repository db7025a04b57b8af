/** @file What a model is made of: configs, tokenizers, and where the weights of each network lie. */

import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import {
  type ClipTextConfig,
  clipTextConfig,
  type UNetConfig,
  unetConfig,
  type VaeConfig,
  vaeConfig,
} from "../models/index.ts";
import { SAMPLERS, type Sampler, type SchedulerConfig, schedulerConfig } from "../samplers/index.ts";
import type { ClipTokenizer } from "../tokenizers/index.ts";
import { kindText, SafetensorsFile, type WeightKind, weightKind } from "../weights/index.ts";
import { about, readConfig, readJson, readTokenizer, type WeightSource, weightsFile } from "./folder.ts";
import { type FolderDefaults, folderDefaults, lightningFile } from "./lightning.ts";
import { type SamplingSettings, samplingSettings } from "./settings.ts";

export type Network = "text_encoder" | "text_encoder_2" | "unet" | "vae";

/** A model as its folder has it. */
export interface BaseModel {
  path: string;
  name: string;
  tokenizers: readonly [ClipTokenizer, ClipTokenizer];
  text: readonly [ClipTextConfig, ClipTextConfig];
  unet: UNetConfig;
  vae: VaeConfig;
  scheduler: SchedulerConfig;
  /** Whether an empty prompt is zeros, or its encoding. */
  zeroEmptyPrompt: boolean;
  defaults: FolderDefaults;
  /** Those of its UNet, where it was distilled. */
  sampling?: SamplingSettings;
  weights(network: Network): string | WeightSource;
}

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
   * Step count that pictures will be asked for. Where the model folder brings few-step weights along, those for this
   * count are taken, and without a count those it names as default; the model's own UNet for other counts, and
   * where `unet` or `loras` are given.
   */
  steps?: number;
}

/** @throws one sentence when a file is missing, or is something else than it was given as. */
export async function readComponents(path: string, options: ComponentOptions): Promise<Components> {
  const base = await readFolder(path);
  const { unet, loras, brought } = await addedFiles(base, options);
  for (const { path, strength } of loras)
    if (!Number.isFinite(strength)) throw new Error(`the strength of ${path} is ${strength}; give a number`);
  const network = unet ? await readAdded(unet, "unet") : undefined;
  const sampling: SamplingSettings = { ...(network ? network.sampling : base.sampling) };
  for (const lora of loras) Object.assign(sampling, (await readAdded(lora.path, "lora")).sampling);
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
    return { unet, loras: asked.map(([path, strength]) => ({ path, name: stem(path), strength })) };
  const brought = await lightningFile(base.path, base.defaults, steps);
  if (!brought) return { loras: [] };
  await using file = await SafetensorsFile.open(brought.path);
  if (weightKind(file.entries.keys()) !== "lora") return { unet: brought.path, loras: [], brought };
  return { loras: [{ path: brought.path, name: stem(brought.path), strength: 1 }], brought };
}

const WHERE: Partial<Record<WeightKind, string>> = {
  lora: "give it as a LoRA",
  unet: "give it as the UNet",
  checkpoint: "give it as the model",
};

/** Tensors and sampling settings of a file that must hold one kind of weights. */
async function readAdded(
  path: string,
  kind: WeightKind,
): Promise<{ source: WeightSource; sampling?: SamplingSettings }> {
  await using file = await SafetensorsFile.open(path);
  const found = weightKind(file.entries.keys());
  if (found !== kind && found !== "unknown")
    throw new Error(
      [`${path} is ${kindText(found)}, not ${kindText(kind)}`, WHERE[found] ?? []].flat().join("; "),
    );
  return { source: { path, tensors: file.entries }, sampling: samplingSettings(file.metadata, path) };
}

/** `a/b.safetensors` → `b` */
function stem(path: string): string {
  return basename(path).replace(/\.safetensors$/, "");
}

async function readFolder(folder: string): Promise<BaseModel> {
  const file = join(folder, "model_index.json");
  if (!existsSync(file))
    throw new Error(
      `${folder}: ${existsSync(folder) ? "no model_index.json there" : "no such folder"}; ` +
        "name a folder in diffusers layout, which has one",
    );
  const index = await readJson(file);
  const config = <T>(part: string, parse: (json: unknown) => T) =>
    readConfig(join(folder, part, "config.json"), parse);
  return {
    path: folder,
    name: basename(resolve(folder)),
    text: [await config("text_encoder", clipTextConfig), await config("text_encoder_2", clipTextConfig)],
    tokenizers: [
      await readTokenizer(join(folder, "tokenizer")),
      await readTokenizer(join(folder, "tokenizer_2")),
    ],
    unet: await config("unet", unetConfig),
    vae: await config("vae", vaeConfig),
    scheduler: await readConfig(join(folder, "scheduler", "scheduler_config.json"), schedulerConfig),
    zeroEmptyPrompt: (index.force_zeros_for_empty_prompt as boolean | undefined) ?? true,
    defaults: await about(file, () => folderDefaults(index.fewstep)),
    weights: (network) => weightsFile(join(folder, network)),
  };
}
