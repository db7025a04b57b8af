/** @file What a pipeline is made of: a base model, with another UNet or VAE perhaps, and adapters on it. */

import { existsSync } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { localPath } from "../hub/index.ts";
import {
  PREDICTION_TYPES,
  type PredictionType,
  SAMPLERS,
  type Sampler,
  type Schedule,
  type SchedulerConfig,
} from "../samplers/index.ts";
import { quote, SafetensorsFile, type WeightKind, weightKind } from "../weights/index.ts";
import { type LoadedAutoencoder, readAutoencoder } from "./autoencoder.ts";
import { type BaseModel, type Network, readFolder } from "./base.ts";
import { markedScheduler, readCheckpoint, toldSampling, unetSource } from "./checkpoint.ts";
import { readJson, type WeightSource } from "./folder.ts";
import { expectKind, stem } from "./kinds.ts";
import { lightningFile } from "./lightning.ts";
import { type SamplingSettings, samplingSettings } from "./settings.ts";

/** An adapter on the UNet and the text encoders. */
export interface Lora {
  path: string;
  name: string;
  /** On the UNet; 1 is the strength it was trained at. */
  strength: number;
  /** On both text encoders. */
  textStrength: number;
  /** The adapter_config.json beside it. */
  config?: unknown;
}

/** Of an adapter: one number for all, or apart. */
export type LoraStrength = number | { unet: number; text: number };

/** Adapter files, or folders with one as PEFT and diffusers write them, and their strengths. */
export type Loras = Readonly<Record<string, LoraStrength>>;

/** A model as it is run: with another UNet perhaps, adapters on it, and the settings of all these. */
export interface Components extends BaseModel {
  loras: readonly Lora[];
  /** Used where nothing else is asked; the prediction type is in `scheduler`. */
  usual: { steps: number; guidance: number; sampler: Sampler; schedule: Schedule };
  /** Steps the weights were distilled for. */
  distilled?: number;
  /** Where options contradict what files say, one sentence each. */
  contradictions: readonly string[];
}

/** Names of files that PEFT and diffusers write an adapter into. */
const LORA_FILES = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];

/** Finds adapters. @throws one sentence for what is not there, and for strengths that are no numbers. */
export async function findLoras(loras: Loras): Promise<Lora[]> {
  return Promise.all(
    Object.entries(loras).map(async ([given, amount]) => {
      const { unet: strength, text: textStrength } =
        typeof amount === "number" ? { unet: amount, text: amount } : amount;
      const found = localPath(given);
      for (const number of [strength, textStrength])
        if (!Number.isFinite(number)) throw new Error(`the strength of ${found} is ${number}; give a number`);
      const lora = { path: found, name: stem(found), strength, textStrength };
      if (!(await stat(found).catch(() => undefined))?.isDirectory()) return lora;
      const path = LORA_FILES.map((name) => join(found, name)).find((file) => existsSync(file));
      if (path === undefined) throw new Error(`${found} has no LoRA: expected ${LORA_FILES.join(" or ")}`);
      const config = join(found, "adapter_config.json");
      return { ...lora, path, ...(existsSync(config) ? { config: await readJson(config) } : {}) };
    }),
  );
}

export interface ComponentOptions {
  /** A .safetensors file that replaces the UNet's weights, with diffusers' names or those of checkpoints. */
  unet?: string;
  /** A .safetensors file, or a folder of diffusers, with another VAE for the same latents; a tiny one (TAESDXL) as well. */
  vae?: string;
  /**
   * Adapters that stay; 1 is the strength they were trained at. Others may be given for each picture; where those are
   * to go on the folder's own UNet, give {} here.
   */
  loras?: Loras;
  /**
   * Step count that pictures will be asked for. Where the model folder brings few-step weights along, those for
   * this count are taken, and without a count those it names as default; the model's own UNet for other counts,
   * and where `unet` or `loras` are given.
   */
  steps?: number;
  /**
   * What the UNet predicts: noise ("epsilon"), v, or the clean latents ("sample", x₀). For files that do not say it, as
   * those of others; goes before what the model says, with a warning where its file says another.
   */
  predictionType?: PredictionType;
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
  const network = unet ? await readUNet(unet, base) : undefined;
  const decoder = options.vae === undefined ? undefined : await readVae(localPath(options.vae), base);
  const { predictionType } = options;
  const told = network ? network.sampling : base.sampling;
  const contradictions = contradicted(unet ?? path, told?.predictionType, predictionType);
  const replaced: Partial<Record<Network, WeightSource>> = { unet: network?.source, vae: decoder?.source };
  const parts = await addLoras(
    settled({
      ...base,
      name: unet ? stem(unet) : base.name,
      loras: [],
      vae: decoder?.vae ?? base.vae,
      weights: (part) => replaced[part] ?? base.weights(part),
      scheduler: { ...base.scheduler, ...network?.scheduler },
      sampling: predictionType ? { ...told, predictionType } : told,
      contradictions,
    }),
    loras,
  );
  if (brought && parts.distilled !== brought.steps)
    throw new Error(
      `${brought.path} is listed for ${brought.steps} steps, but says ${parts.distilled ?? "nothing"} itself; ` +
        "mend model_index.json",
    );
  return parts;
}

/** @throws a sentence when the asked one is none. */
function contradicted(file: string, told?: PredictionType, asked?: PredictionType): string[] {
  if (asked !== undefined && !PREDICTION_TYPES.includes(asked))
    throw new Error(`the prediction type is ${quote(asked)}; accepted are ${PREDICTION_TYPES.join(", ")}`);
  if (asked === undefined || told === undefined || asked === told) return [];
  return [
    `${file} says that its UNet predicts ${told}; it is sampled as one that predicts ${asked}, as asked`,
  ];
}

/** A model with more adapters on it, sampled as they say. @throws when one is for another kind of prediction. */
export async function addLoras(parts: Components, loras: readonly Lora[]): Promise<Components> {
  const sampling: SamplingSettings = { ...parts.sampling };
  for (const lora of loras) {
    const added = await readSettings(lora.path, "lora");
    const types = [sampling, added].flatMap((settings) => settings?.predictionType ?? []);
    if (types.length > 1 && types[0] !== types[1])
      throw new Error(`${lora.path} is for a UNet that predicts ${types[1]}; this one predicts ${types[0]}`);
    Object.assign(sampling, added);
  }
  return settled({ ...parts, loras: [...parts.loras, ...loras], sampling });
}

/** With the settings that the files of a model bring along. */
function settled(parts: Omit<Components, "usual" | "distilled">): Components {
  const { steps, guidance, sampler, spacing, predictionType } = parts.sampling ?? {};
  const { defaults, scheduler } = parts;
  // weights that say themselves how they are sampled are not those that the folder's scheduler is for
  const usual = sampler || spacing ? { sampler: sampler ?? "euler" } : parts.usualSampling;
  return {
    ...parts,
    scheduler: {
      ...scheduler,
      timestep_spacing: spacing ?? scheduler.timestep_spacing,
      prediction_type: predictionType ?? scheduler.prediction_type,
    },
    usual: {
      steps: steps ?? defaults.steps,
      guidance: guidance ?? defaults.guidance,
      sampler: SAMPLERS[usual.sampler],
      schedule: usual.schedule ?? spacing ?? scheduler.timestep_spacing,
    },
    distilled: steps,
  };
}

/** UNet and adapters beside the base: those asked for, or those that the folder brings along. */
async function addedFiles(
  base: BaseModel,
  { unet, loras, steps }: ComponentOptions,
): Promise<{ unet?: string; loras: Lora[]; brought?: { path: string; steps: number } }> {
  if (unet !== undefined || loras !== undefined)
    return { unet: unet && localPath(unet), loras: await findLoras(loras ?? {}) };
  const brought = await lightningFile(base.path, base.defaults, steps);
  if (!brought) return { loras: [] };
  await using file = await SafetensorsFile.open(brought.path);
  if (weightKind(file.entries.keys()) !== "lora") return { unet: brought.path, loras: [], brought };
  return { loras: await findLoras({ [brought.path]: 1 }), brought };
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
): Promise<{ source: WeightSource; sampling?: SamplingSettings; scheduler: Partial<SchedulerConfig> }> {
  await using file = await SafetensorsFile.open(path);
  const sampling = toldSampling(file);
  expectKind(file, "unet", "checkpoint");
  return { source: await unetSource(file, base.unet), sampling, scheduler: markedScheduler(file.entries) };
}

async function readVae(path: string, { unet, vae }: BaseModel): Promise<LoadedAutoencoder> {
  const found = await readAutoencoder(path, vae.full);
  for (const [what, needed, has] of [
    ["channels", unet.in_channels, found.vae.latentChannels],
    ["pixels along one side of a latent", vae.factor, found.vae.factor],
  ] as const)
    if (needed !== has)
      throw new Error(`${path} decodes latents of ${has} ${what}; this model needs ${needed}`);
  return found;
}
