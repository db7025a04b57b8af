/** @file A model as its folder has it: configs, tokenizers, and where the weights of each network lie. */

import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { repoOf } from "../hub/index.ts";
import {
  type ClipTextConfig,
  clipTextConfig,
  type UNetConfig,
  unetConfig,
  type VaeConfig,
  vaeConfig,
} from "../models/index.ts";
import { type SchedulerConfig, schedulerConfig } from "../samplers/index.ts";
import type { ClipTokenizer } from "../tokenizers/index.ts";
import { about, readConfig, readJson, readTokenizer, type WeightSource, weightsFile } from "./folder.ts";
import { type FolderDefaults, folderDefaults } from "./lightning.ts";
import type { SamplingSettings } from "./settings.ts";

export type Network = "text_encoder" | "text_encoder_2" | "unet" | "vae";

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

/** @throws one sentence when a part is missing or is not what it should be. */
export async function readFolder(folder: string): Promise<BaseModel> {
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
    name: repoOf(folder) ?? basename(resolve(folder)),
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
