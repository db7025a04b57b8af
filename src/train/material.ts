/** @file What training reads: a dataset, and through frozen components its latents and the encodings of its captions. */

import { join } from "node:path";
import { type Dataset, latentCache, loadIcons, loadPictures, type Skipped } from "../data/index.ts";
import { clipTextConfig, type UNetConfig, vaeConfig, vaeScaleFactor } from "../models/index.ts";
import { loadWeights, normalizeLatents, readConfig, readTokenizer, weightsFile } from "../pipelines/index.ts";
import { fileHash } from "../platform/index.ts";
import type { FloatTensor, HostTensor } from "../tensor/index.ts";
import type { Recipe } from "./recipe.ts";
import { type CaptionBank, encodeCaptions, latentEncoder, promptEncoder } from "./tasks.ts";

export interface OpenOptions {
  /** Called with what is done before the first step. */
  onPrepare?: (what: string, done?: number, total?: number) => void;
  /** Called with the pictures that cannot be used. */
  onSkipped?: (skipped: readonly Skipped[]) => void;
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
  if (size % step !== 0) throw new Error(`data.size is ${size}; ${task} needs a multiple of ${step}`);
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

/** Where the material of a UNet comes from. */
export interface MaterialSource {
  task: string;
  /** Folder of the run; latents are kept there. */
  out: string;
  data: Recipe["data"];
  /** Folder of the VAE. */
  vae: string;
  /** Folder of the text encoders and tokenizers. */
  text: string;
  /** Random captions of every picture. */
  captions: number;
  seed: number;
}

/** What a UNet learns from. */
export interface Material {
  data: Dataset;
  bank: CaptionBank;
  /** Encoding of the empty prompt, [1,T,D] and [1,P]. */
  empty: Record<"hidden" | "pooled", FloatTensor>;
  /** Normalised latents of pictures of one bucket, [B,C,h,w]. */
  latents(indices: readonly number[]): Promise<FloatTensor>;
  /** Pixels per latent position. */
  scaleFactor: number;
  close(): Promise<void>;
}

/** Opens a dataset for a UNet; encodes its pictures (once for all runs in `out`) and captions. */
export async function openMaterial(
  { task, out, seed, captions, ...source }: MaterialSource,
  unet: Pick<UNetConfig, "block_out_channels">,
  options: OpenOptions,
): Promise<Material> {
  const { onPrepare = () => {} } = options;
  const vae = await readConfig(join(source.vae, "config.json"), vaeConfig);
  const scaleFactor = vaeScaleFactor(vae);
  const step = scaleFactor * 2 ** (unet.block_out_channels.length - 1);
  const data = await openData(source.data, { task, step }, options);
  onPrepare("encoding the pictures");
  await using encoder = await latentEncoder(vae, new Map(Object.entries(await loadWeights(source.vae))));
  const cache = await latentCache({
    dataset: data,
    encode: (pixels) => encoder.encode(pixels),
    key: await fileHash(weightsFile(source.vae)),
    folder: join(out, "latents"),
    batch: 16,
    onProgress: (done, total) => onPrepare("encoding the pictures", done, total),
  });
  onPrepare("encoding the captions");
  const text = {
    textEncoder: await readConfig(join(source.text, "text_encoder", "config.json"), clipTextConfig),
    textEncoder2: await readConfig(join(source.text, "text_encoder_2", "config.json"), clipTextConfig),
  };
  const textWeights = new Map<string, HostTensor>();
  for (const part of ["text_encoder", "text_encoder_2"])
    for (const [k, t] of Object.entries(await loadWeights(join(source.text, part))))
      textWeights.set(`${part}.${k}`, t);
  const tokenizers = {
    tokenizer: await readTokenizer(join(source.text, "tokenizer")),
    tokenizer2: await readTokenizer(join(source.text, "tokenizer_2")),
  };
  await using prompts = await promptEncoder(text, textWeights, tokenizers);
  const bank = await encodeCaptions(prompts, data, { perPicture: captions, seed: seed - 1 });
  return {
    data,
    bank,
    empty: await prompts.encode([""]),
    scaleFactor,
    latents: async (indices) => normalizeLatents(vae, await cache.latents(indices)),
    close: async () => cache[Symbol.asyncDispose](),
  };
}
