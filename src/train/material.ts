/** @file What training reads: a dataset, and through frozen components its latents and the encodings of its captions. */

import { join } from "node:path";
import { type Dataset, latentCache, loadIcons, loadPictures, type Skipped } from "../data/index.ts";
import {
  clipTextConfig,
  type UNetConfig,
  type VaeConfig,
  vaeConfig,
  vaeScaleFactor,
} from "../models/index.ts";
import { loadWeights, normalizeLatents, readConfig, readTokenizer, weightsFile } from "../pipelines/index.ts";
import { fileHash } from "../platform/index.ts";
import type { FloatTensor, HostTensor } from "../tensor/index.ts";
import type { Recipe } from "./recipe.ts";
import {
  type CaptionBank,
  encodeCaptions,
  latentEncoder,
  promptEncoder,
  type TokenizerPair,
} from "./tasks.ts";
import type { TextConfigs } from "./unet.ts";

export interface OpenOptions {
  /** Called with what is done before the first step. */
  onPrepare?: (what: string, done?: number, total?: number) => void;
  /** Called with the pictures that cannot be used. */
  onSkipped?: (skipped: readonly Skipped[]) => void;
}

/** @throws when `data.size` is no multiple of `step`. */
function checkSize(data: Recipe["data"], { task, step }: { task: string; step: number }): void {
  if (data.kind === "pictures" && data.size % step !== 0)
    throw new Error(`data.size is ${data.size}; ${task} needs a multiple of ${step}`);
}

/** Opens the dataset: `step` is what the sides of pictures must be multiples of, `square` forbids other shapes. */
export async function openData(
  data: Recipe["data"],
  { task, step, square }: { task: string; step: number; square?: boolean },
  { onPrepare, onSkipped }: OpenOptions,
): Promise<Dataset> {
  onPrepare?.("reading the dataset");
  if (data.kind === "icons") {
    const icons = await loadIcons(data.folder, data.splits);
    if (icons.length === 0) throw new Error(`${data.folder}: no picture in ${data.splits.join(", ")}`);
    if (icons.size % step !== 0)
      throw new Error(
        `${data.folder}: pictures of ${icons.size} pixels; ${task} needs a multiple of ${step}`,
      );
    return icons;
  }
  const { path, size, convention, maxAspect } = data;
  if (square && maxAspect > 1) throw new Error(`data.maxAspect is ${maxAspect}; ${task} needs 1, squares`);
  checkSize(data, { task, step });
  const pictures = await loadPictures({
    path,
    convention,
    size,
    step,
    maxAspect,
    onProgress: (done, total) => onPrepare?.("reading the dataset", done, total),
  });
  onSkipped?.(pictures.report.skipped);
  return pictures;
}

/** Where the pictures of a UNet come from. */
export interface PictureSource {
  task: string;
  /** Folder of the run; latents are kept there. */
  out: string;
  data: Recipe["data"];
  /** Folder of the VAE. */
  vae: string;
}

/**
 * What the sides of a UNet's pictures must be multiples of.
 * @throws when `data.size` is none.
 */
export function sideStep(
  { task, data }: Pick<PictureSource, "task" | "data">,
  vae: VaeConfig,
  unet: Pick<UNetConfig, "block_out_channels">,
): number {
  const step = vaeScaleFactor(vae) * 2 ** (unet.block_out_channels.length - 1);
  checkSize(data, { task, step });
  return step;
}

/** Pictures as a UNet sees them. */
export interface LatentPictures {
  data: Dataset;
  /** Normalised latents of pictures of one bucket, [B,C,h,w]. */
  latents(indices: readonly number[]): Promise<FloatTensor>;
  /** Pixels per latent position. */
  scaleFactor: number;
  close(): Promise<void>;
}

/** Opens a dataset for a UNet; encodes its pictures, once for all runs in `out`. */
export async function openLatents(
  { task, out, ...source }: PictureSource,
  unet: Pick<UNetConfig, "block_out_channels">,
  options: OpenOptions,
): Promise<LatentPictures> {
  const { onPrepare = () => {} } = options;
  const vae = await readConfig(join(source.vae, "config.json"), vaeConfig);
  const scaleFactor = vaeScaleFactor(vae);
  const step = sideStep({ task, data: source.data }, vae, unet);
  const data = await openData(source.data, { task, step }, options);
  onPrepare("encoding the pictures");
  await using encoder = await latentEncoder(vae, new Map(Object.entries(await loadWeights(source.vae))));
  const cache = await latentCache({
    dataset: data,
    encode: async (indices) => encoder.encode(await data.pixels(indices)),
    key: await fileHash(weightsFile(source.vae)),
    folder: join(out, "latents"),
    batch: 16,
    onProgress: (done, total) => onPrepare("encoding the pictures", done, total),
  });
  return {
    data,
    scaleFactor,
    latents: async (indices) => normalizeLatents(vae, await cache.latents(indices)),
    close: async () => cache[Symbol.asyncDispose](),
  };
}

/** Both text encoders of a folder: configs, weights with the component before their keys, tokenizers. */
export interface TextEncoders {
  configs: TextConfigs;
  weights: Record<string, HostTensor>;
  tokenizers: TokenizerPair;
}

export async function readTextEncoders(folder: string): Promise<TextEncoders> {
  const weights: Record<string, HostTensor> = {};
  const config = async (part: string) => {
    for (const [k, t] of Object.entries(await loadWeights(join(folder, part)))) weights[`${part}.${k}`] = t;
    return readConfig(join(folder, part, "config.json"), clipTextConfig);
  };
  return {
    configs: { textEncoder: await config("text_encoder"), textEncoder2: await config("text_encoder_2") },
    weights,
    tokenizers: {
      tokenizer: await readTokenizer(join(folder, "tokenizer")),
      tokenizer2: await readTokenizer(join(folder, "tokenizer_2")),
    },
  };
}

export interface MaterialSource extends PictureSource {
  /** Folder of the text encoders and tokenizers. */
  text: string;
  /** Random captions of every picture. */
  captions: number;
  seed: number;
}

/** What a UNet learns from when its text encoders stay as they are. */
export interface Material extends LatentPictures {
  bank: CaptionBank;
  /** Encoding of the empty prompt, [1,T,D] and [1,P]. */
  empty: Record<"hidden" | "pooled", FloatTensor>;
}

/** Opens a dataset for a UNet; encodes its pictures and captions. */
export async function openMaterial(
  source: MaterialSource,
  unet: Pick<UNetConfig, "block_out_channels">,
  options: OpenOptions,
): Promise<Material> {
  const pictures = await openLatents(source, unet, options);
  options.onPrepare?.("encoding the captions");
  const { configs, weights, tokenizers } = await readTextEncoders(source.text);
  await using prompts = await promptEncoder(configs, new Map(Object.entries(weights)), tokenizers);
  const caption = { perPicture: source.captions, seed: source.seed - 1 };
  const bank = await encodeCaptions(prompts, pictures.data, caption);
  return { ...pictures, bank, empty: await prompts.encode([""]) };
}
