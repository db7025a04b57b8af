/** @file What turns latents into pictures: the VAE of SDXL, or a tiny one for the same latents. */

import { existsSync } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import type { Value } from "../graph/index.ts";
import {
  type TinyConfig,
  tinyConfig,
  tinyDecode,
  type VaeConfig,
  vaeConfig,
  vaeDecode,
  vaeScaleFactor,
} from "../models/index.ts";
import type { Scope } from "../nn/index.ts";
import { SafetensorsFile, tinyVaeTable, vaeTable, weightKind } from "../weights/index.ts";
import { about, readConfig, readJson, sourceOf, type WeightSource, weightsFiles } from "./folder.ts";
import { expectKind } from "./kinds.ts";
import type { Scaling } from "./latents.ts";
import { tinyConfigOf, vaeConfigOf } from "./shapes.ts";

export interface Autoencoder {
  latentChannels: number;
  /** Pixels per latent position along one side. */
  factor: number;
  /** Pixels along one side that it was trained with, where its config says so. */
  sampleSize?: number;
  scaling: Scaling;
  /** Config of a full one. */
  full?: VaeConfig;
  /** Latents [B,4,h,w], not scaled → pictures [B,3,H,W] around [−1,1]. */
  decode(scope: Scope, latents: Value): Value;
}

export function fullAutoencoder(config: VaeConfig): Autoencoder {
  return {
    latentChannels: config.latent_channels,
    factor: vaeScaleFactor(config),
    sampleSize: config.sample_size,
    scaling: config,
    full: config,
    decode: (scope, latents) => vaeDecode(scope, config, latents),
  };
}

export function tinyAutoencoder(config: TinyConfig): Autoencoder {
  return {
    latentChannels: config.latent_channels,
    factor: 2 ** (config.decoder_block_out_channels.length - 1),
    scaling: { scaling_factor: config.scaling_factor },
    decode: (scope, latents) => tinyDecode(scope, config, latents),
  };
}

/** The autoencoder of a folder with its config.json. */
export async function autoencoderOf(folder: string): Promise<Autoencoder> {
  const path = join(folder, "config.json");
  const { _class_name: name } = await readJson(path);
  if (name === "AutoencoderTiny") return tinyAutoencoder(await readConfig(path, tinyConfig));
  if (name !== undefined && name !== "AutoencoderKL")
    throw new Error(`${folder} is of the class ${name}; use an AutoencoderKL or AutoencoderTiny`);
  return fullAutoencoder(await readConfig(path, vaeConfig));
}

export interface LoadedAutoencoder {
  vae: Autoencoder;
  source: WeightSource;
}

/**
 * An autoencoder on its own: a folder of diffusers, or a file, a checkpoint's among them.
 * @param like the VAE that it takes the place of: scaling and norms, which weights do not tell, are the same.
 * @throws one sentence when it is something else.
 */
export async function readAutoencoder(path: string, like?: VaeConfig): Promise<LoadedAutoencoder> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory()) {
    const folder = existsSync(join(path, "model_index.json")) ? join(path, "vae") : path;
    const source = await sourceOf(await weightsFiles(folder));
    return { vae: await autoencoderOf(folder), source: { ...source, tensors: renewed(source.tensors) } };
  }
  await using file = await SafetensorsFile.open(path);
  return await about(path, () =>
    weightKind(file.entries.keys()) === "tiny-vae" ? tinyOf(file) : fullOf(file, like),
  );
}

async function tinyOf(file: SafetensorsFile): Promise<LoadedAutoencoder> {
  const keys = [...file.entries.keys()];
  const starts = (half: string) => keys.some((key) => key.startsWith(half));
  const plain = starts("decoder.layers.") || starts("encoder.layers.");
  const prefix = starts("taesd_decoder.") ? "taesd_" : "";
  const table = starts(`${prefix}decoder.`)
    ? tinyVaeTable({ encoder: `${prefix}encoder.`, decoder: `${prefix}decoder.` })
    : tinyVaeTable({ decoder: "" });
  const tensors = plain ? file.entries : await table.read(file);
  if (![...tensors.keys()].some((key) => key.startsWith("decoder.layers.0.")))
    throw new Error("this is the encoder of a tiny VAE; pictures need its decoder");
  const kept = [...tensors].filter(([key]) => !/^vae_(scale|shift)$/.test(key)); // of ComfyUI, not for SDXL
  const source = { path: file.path, tensors: new Map(kept) };
  return { vae: tinyAutoencoder(tinyConfigOf(source.tensors)), source };
}

/** Where the VAE lies in a file. */
const CHECKPOINT_PREFIX = "first_stage_model.";

async function fullOf(file: SafetensorsFile, like?: VaeConfig): Promise<LoadedAutoencoder> {
  const keys = [...file.entries.keys()];
  const prefix = keys.some((key) => key.startsWith(CHECKPOINT_PREFIX)) ? CHECKPOINT_PREFIX : "";
  if (prefix === "") expectKind(file, "vae");
  const below = new Map(
    [...file.entries]
      .filter(([key]) => key.startsWith(prefix))
      .map(([key, entry]) => [key.slice(prefix.length), entry] as const),
  );
  if (below.has("decoder.up.0.block.0.conv1.weight")) {
    const config = vaeConfigOf(below, "checkpoint", like);
    const tensors = await vaeTable(config).read(file, prefix);
    return { vae: fullAutoencoder(config), source: { path: file.path, tensors } };
  }
  const tensors = renewed(below);
  const config = vaeConfigOf(tensors, "diffusers", like);
  return { vae: fullAutoencoder(config), source: { path: file.path, tensors } };
}

/** Names that diffusers gave to attention before its version 0.17. */
const OLD_NAMES: Readonly<Record<string, string>> = {
  query: "to_q",
  key: "to_k",
  value: "to_v",
  proj_attn: "to_out.0",
};

/** Tensors with the names of today. */
export function renewed<T>(tensors: ReadonlyMap<string, T>): Map<string, T> {
  const pattern = /\.attentions\.0\.(query|key|value|proj_attn)\./;
  return new Map(
    [...tensors].map(([key, entry]) => [
      key.replace(pattern, (_, name: string) => `.attentions.0.${OLD_NAMES[name]}.`),
      entry,
    ]),
  );
}
