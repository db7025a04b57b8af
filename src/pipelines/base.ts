/** @file A model as its folder has it: configs, tokenizers, and where the weights of each network lie. */

import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { repoOf } from "../hub/index.ts";
import { type ClipTextConfig, clipTextConfig, type UNetConfig, unetConfig } from "../models/index.ts";
import {
  type SchedulerConfig,
  schedulerConfig,
  type UsualSampling,
  usualSampling,
} from "../samplers/index.ts";
import { ClipTokenizer } from "../tokenizers/index.ts";
import { quote } from "../weights/index.ts";
import { type Autoencoder, autoencoderOf, renewed } from "./autoencoder.ts";
import {
  about,
  readConfig,
  readJson,
  readTokenizer,
  sourceOf,
  type WeightSource,
  weightsFiles,
} from "./folder.ts";
import { type FolderDefaults, folderDefaults } from "./lightning.ts";
import type { SamplingSettings } from "./settings.ts";
import { CLIP_VOCABULARY, sdxlTokenizers } from "./vocabulary.ts";

/** As model folders call them. */
export const NETWORKS = ["text_encoder", "text_encoder_2", "unet", "vae"] as const;
export type Network = (typeof NETWORKS)[number];

export interface BaseModel {
  path: string;
  name: string;
  tokenizers: readonly [ClipTokenizer, ClipTokenizer];
  text: readonly [ClipTextConfig, ClipTextConfig];
  unet: UNetConfig;
  vae: Autoencoder;
  scheduler: SchedulerConfig;
  /** How its scheduler samples it. */
  usualSampling: UsualSampling;
  /** Whether an empty prompt is zeros, or its encoding. */
  zeroEmptyPrompt: boolean;
  defaults: FolderDefaults;
  /** Those of its UNet, where it was distilled. */
  sampling?: SamplingSettings;
  weights(network: Network): WeightSource | Promise<WeightSource>;
}

/** @throws one sentence when a part is missing or is not what it should be. */
export async function readFolder(folder: string): Promise<BaseModel> {
  const file = join(folder, "model_index.json");
  if (!existsSync(file))
    throw new Error(
      `${folder}: ${existsSync(folder) ? "no model_index.json there" : "no such folder"}; ` +
        "name a folder in diffusers layout, which has one",
    );
  const index = await readJson(file);
  const { _class_name: pipeline } = index;
  if (pipeline !== undefined && !/StableDiffusionXL/.test(String(pipeline)))
    throw new Error(
      `${folder} is made for ${quote(pipeline)}; fewstep runs models of StableDiffusionXLPipeline`,
    );
  for (const network of NETWORKS)
    if (isLeftOut(index[network]))
      throw new Error(
        `${folder} has no ${network}, as refiners and parts of models; name a whole SDXL model`,
      );
  const config = <T>(part: string, parse: (json: unknown) => T) =>
    readConfig(join(folder, part, "config.json"), parse);
  const text = [
    await config("text_encoder", clipTextConfig),
    await config("text_encoder_2", clipTextConfig),
  ] as const;
  const unet = await config("unet", unetConfig);
  if (unet.in_channels !== unet.out_channels)
    throw new Error(
      `${join(folder, "unet")} takes ${unet.in_channels} channels, as UNets for inpainting and edits do; ` +
        `fewstep runs those for text to image, which take ${unet.out_channels}`,
    );
  return {
    path: folder,
    name: repoOf(folder) ?? basename(resolve(folder)),
    text,
    tokenizers: [await tokenizerOf(folder, 0, text[0]), await tokenizerOf(folder, 1, text[1])],
    unet,
    vae: await autoencoderOf(join(folder, "vae")),
    ...(await readConfig(join(folder, "scheduler", "scheduler_config.json"), schedulerParts)),
    zeroEmptyPrompt: (index.force_zeros_for_empty_prompt as boolean | undefined) ?? true,
    defaults: await about(file, () => folderDefaults(index.fewstep)),
    weights: async (network) => {
      const source = await sourceOf(await weightsFiles(join(folder, network)));
      return network === "vae" ? { ...source, tensors: renewed(source.tensors) } : source;
    },
  };
}

/** What a scheduler's config says: of noise, and of how to sample. */
export function schedulerParts(json: unknown): Pick<BaseModel, "scheduler" | "usualSampling"> {
  return { scheduler: schedulerConfig(json), usualSampling: usualSampling(json) };
}

/** Whether model_index.json says that an optional component is not there. */
function isLeftOut(entry: unknown): boolean {
  return Array.isArray(entry) && entry[0] === null;
}

/** A tokenizer of the folder; CLIP's own where a folder leaves it out and the text encoder has its size. */
async function tokenizerOf(folder: string, i: 0 | 1, { vocab_size }: ClipTextConfig): Promise<ClipTokenizer> {
  const own = join(folder, ["tokenizer", "tokenizer_2"][i]);
  if (!existsSync(join(own, "vocab.json")) && vocab_size === CLIP_VOCABULARY)
    return new ClipTokenizer((await sdxlTokenizers())[i]);
  return readTokenizer(own);
}
