/** @file What the trainer can train: jobs for the autoencoder, the CLIP pair and the teacher UNet. */

import { join } from "node:path";
import {
  type BatchPlace,
  type BatchSampler,
  batchSampler,
  contactSheet,
  type Dataset,
} from "../data/index.ts";
import { graph, input, symbol } from "../graph/index.ts";
import { type UNetConfig, type VaeConfig, vaeDecode, vaeEncode, vaeScaleFactor } from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { atomicWrite, readPlanes } from "../platform/index.ts";
import { compile } from "../runtime/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor } from "../tensor/index.ts";
import type { ClipTokenizer } from "../tokenizers/index.ts";
import { type ClipConfigs, clipLoss } from "./clip.ts";
import type { Job } from "./fit.ts";
import type { Loss } from "./parallel.ts";
import {
  biasedPlace,
  encodedPrompt,
  encodePrompt,
  noiseErrorWeight,
  type Prompt,
  type SnrWeighting,
  type TextConfigs,
  type TimestepBias,
  trainedPrompt,
  type UNetBatch,
  unetLoss,
} from "./unet.ts";
import { type VaeLossOptions, vaeLoss } from "./vae.ts";

/** A generator for one micro-batch, so that every batch is known from its place alone. */
export function batchGenerator(seed: number, { step, micro }: BatchPlace): Generator {
  const g = new Generator((seed * 1_000_003 + step * 8191 + micro) % 2 ** 32);
  for (let i = 0; i < 8; i++) g.uint32();
  return g;
}

/** Micro-batches of a dataset; any replica finds its own. */
function batches(data: Dataset, batch: number, seed: number): BatchSampler {
  return batchSampler({ members: data.buckets.map((b) => b.members), batch, seed });
}

/** Steps that are one loss, for inputs of one or several shapes. */
function singleLoss(first: Loss, variants: readonly Loss[] = []): Pick<Job, "passes" | "variants"> {
  const pass = (loss: Loss) => [{ name: "", ...loss }];
  return { passes: pass(first), variants: variants.map(pass) };
}

export interface VaeJobOptions extends VaeLossOptions {
  batch: number;
  seed: number;
  /** Folder for sample grids. */
  out: string;
  /** Weights that are not trained. */
  frozen?: ReadonlyMap<string, HostTensor>;
}

export function vaeJob(config: VaeConfig, data: Dataset, options: VaeJobOptions): Job {
  const { batch, seed, out, frozen, ...weights } = options;
  const factor = vaeScaleFactor(config);
  const [first, ...variants] = data.buckets.map((size) => vaeLoss(config, { batch, ...size }, weights));
  const sampler = batches(data, batch, seed);
  return {
    ...singleLoss(first, variants),
    batch,
    frozen,
    feeds: async (at) => {
      const { bucket, indices } = sampler.at(at);
      const { width, height } = data.buckets[bucket];
      const noise = [batch, config.latent_channels, height / factor, width / factor];
      return { pictures: await data.pixels(indices), noise: batchGenerator(seed, at).randn(noise) };
    },
    preview: async (tensors, step) => {
      const { width, height, members } = data.buckets[0];
      const indices = Array.from({ length: 24 }, (_, i) => members[Math.floor((i * members.length) / 24)]);
      const originals = await data.pixels(indices);
      const pictures = input("pictures", "float32", [indices.length, 3, height, width]);
      const mean = vaeEncode(rootScope(), config, pictures).slice(1, 0, config.latent_channels);
      const restored = vaeDecode(rootScope(), config, mean);
      await using program = await compile(graph({ restored }), {
        weights: new Map([...(frozen ?? []), ...Object.entries(tensors)]),
        threads: 1,
      });
      const result = await program.run({ pictures: originals });
      const n = 3 * width * height;
      const at = (t: HostTensor, i: number) => ({
        data: readPlanes((t.data as Float32Array).subarray(i * n, (i + 1) * n)),
        width,
        height,
      });
      const sheet = indices.flatMap((_, i) => [at(originals, i), at(result.restored, i)]);
      await atomicWrite(join(out, `samples-${step}.png`), await contactSheet(sheet, { columns: 12 }));
    },
  };
}

/** Moves every picture of [B,3,H,W] by up to `reach` pixels; white comes in. */
function shifted(pictures: FloatTensor, reach: number, g: Generator): FloatTensor {
  const [B, C, H, W] = pictures.shape;
  const out = floats(pictures.shape, new Float32Array(pictures.data.length).fill(1));
  for (let b = 0; b < B; b++) {
    const [dy, dx] = [g.integer(2 * reach + 1) - reach, g.integer(2 * reach + 1) - reach];
    const [from, to] = [Math.max(0, dx), Math.min(W, W + dx)];
    for (let c = b * C; c < (b + 1) * C; c++)
      for (let y = Math.max(0, dy); y < Math.min(H, H + dy); y++) {
        const source = (c * H + y - dy) * W - dx;
        out.data.set(pictures.data.subarray(source + from, source + to), (c * H + y) * W + from);
      }
  }
  return out;
}

export interface TokenizerPair {
  tokenizer: ClipTokenizer;
  tokenizer2: ClipTokenizer;
}

/** Token inputs of both text encoders, under the names that the graphs use. */
export function tokenFeeds(
  { tokenizer, tokenizer2 }: TokenizerPair,
  texts: readonly string[],
): Record<"ids" | "ids_2" | "end", HostTensor> {
  const { ids, end } = tokenizer.encodeBatch(texts);
  return { ids, end, ids_2: tokenizer2.encodeBatch(texts).ids };
}

export interface ClipJobOptions {
  batch: number;
  seed: number;
  /** Largest shift of a picture, in pixels. */
  shift: number;
  /** Weight of the agreement between captions of a picture. */
  agreement: number;
  tokenizers: TokenizerPair;
}

export function clipJob(configs: ClipConfigs, data: Dataset, options: ClipJobOptions): Job {
  const { batch, seed, shift, agreement, tokenizers } = options;
  const side = configs.vision.image_size;
  const [{ width, height }] = data.buckets;
  if (data.buckets.length > 1 || width !== side || height !== side)
    throw new Error(`the image encoder looks at ${side}×${side} pixels; the dataset has ${width}×${height}`);
  if (batch > data.length)
    throw new Error(`microBatch ${batch} is more than the ${data.length} pictures there are`);
  const { loss, metrics } = clipLoss(configs, { batch, agreement });
  const diagonal = floats([batch, batch]);
  for (let i = 0; i < batch; i++) diagonal.data[i * (batch + 1)] = 1;
  const sampler = batches(data, batch, seed); // without repetition: a picture twice would be its own rival
  return {
    ...singleLoss({ loss, metrics }),
    batch,
    feeds: async (at) => {
      const g = batchGenerator(seed, at);
      const { indices } = sampler.at(at);
      const pixels = shifted(await data.pixels(indices), shift, g);
      const captions = () =>
        tokenFeeds(
          tokenizers,
          indices.map((index) => data.caption(index, () => g.random())),
        );
      const feeds = { pixels, diagonal, ...captions() };
      if (agreement === 0) return feeds;
      const others = Object.entries(captions()).map(([name, t]) => [`other_${name}`, t]);
      return { ...feeds, ...Object.fromEntries(others) };
    },
  };
}

/** The mean of a VAE's posterior for pictures [B,3,H,W] of any size, not normalised. Free the program. */
export async function latentEncoder(
  config: VaeConfig,
  weights: ReadonlyMap<string, HostTensor>,
): Promise<AsyncDisposable & { encode(pixels: FloatTensor): Promise<FloatTensor> }> {
  const pictures = input("pictures", "float32", [symbol("B"), 3, symbol("H"), symbol("W")]);
  const mean = vaeEncode(rootScope(), config, pictures).slice(1, 0, config.latent_channels);
  const program = await compile(graph({ mean }), { weights });
  return {
    encode: async (pixels) => (await program.run({ pictures: pixels })).mean as FloatTensor,
    [Symbol.asyncDispose]: () => program.dispose(),
  };
}

/** Encodings of several random captions of every picture: the frozen text encoders run once, not every step. */
export interface CaptionBank {
  perPicture: number;
  /** Tokens of a caption. */
  tokens: number;
  /** Floats of one caption's hidden states and pooled embedding. */
  hiddenSize: number;
  pooledSize: number;
  hidden: Float32Array;
  pooled: Float32Array;
}

/** Both text encoders as one program. Free it. */
export async function promptEncoder(
  text: TextConfigs,
  weights: ReadonlyMap<string, HostTensor>,
  tokenizers: TokenizerPair,
): Promise<
  AsyncDisposable & { encode(texts: readonly string[]): Promise<Record<"hidden" | "pooled", FloatTensor>> }
> {
  const T = text.textEncoder.max_position_embeddings;
  const [ids, ids2] = ["ids", "ids_2"].map((n) => input(n, "int64", [symbol("B"), T]));
  const outputs = encodePrompt(text, { ids, ids2, end: input("end", "int64", [symbol("B")]) });
  const program = await compile(graph({ ...outputs }), { weights });
  return {
    encode: async (texts) => {
      const { hidden, pooled } = await program.run(tokenFeeds(tokenizers, texts));
      return { hidden: hidden as FloatTensor, pooled: pooled as FloatTensor };
    },
    [Symbol.asyncDispose]: () => program.dispose(),
  };
}

export async function encodeCaptions(
  { encode }: Pick<Awaited<ReturnType<typeof promptEncoder>>, "encode">,
  data: Dataset,
  { perPicture, seed }: { perPicture: number; seed: number },
): Promise<CaptionBank> {
  const count = data.length * perPicture;
  const g = new Generator(seed);
  const random = () => g.random();
  let bank: CaptionBank | undefined;
  for (let start = 0; start < count; start += 64) {
    const rows = Array.from({ length: Math.min(64, count - start) }, (_, i) =>
      data.caption(Math.floor((start + i) / perPicture), random),
    );
    const { hidden, pooled } = await encode(rows);
    const [hiddenSize, pooledSize] = [hidden, pooled].map((t) => t.data.length / rows.length);
    bank ??= {
      perPicture,
      tokens: hidden.shape[1],
      hiddenSize,
      pooledSize,
      hidden: new Float32Array(count * hiddenSize),
      pooled: new Float32Array(count * pooledSize),
    };
    bank.hidden.set(hidden.data, start * hiddenSize);
    bank.pooled.set(pooled.data, start * pooledSize);
  }
  if (!bank) throw new Error("there are no captions to encode");
  return bank;
}

/** Sizes of pictures as a UNet is told them, [B,6]. */
function timeIdsFeed(data: Dataset, indices: readonly number[]): FloatTensor {
  return floats(
    [indices.length, 6],
    indices.flatMap((index) => data.timeIds(index)),
  );
}

/** What a UNet is told: captions, by their rows in the bank (zeros, as SDXL's empty one, where `dropped`), and sizes. */
export function captionFeeds(
  { data, bank }: { data: Dataset; bank: CaptionBank },
  rows: readonly number[],
  dropped: readonly boolean[] = [],
): Record<"hidden" | "pooled" | "time_ids", FloatTensor> {
  const { hiddenSize, pooledSize, perPicture } = bank;
  const hidden = new Float32Array(rows.length * hiddenSize);
  const pooled = new Float32Array(rows.length * pooledSize);
  for (const [b, row] of rows.entries()) {
    if (dropped[b]) continue;
    hidden.set(bank.hidden.subarray(row * hiddenSize, (row + 1) * hiddenSize), b * hiddenSize);
    pooled.set(bank.pooled.subarray(row * pooledSize, (row + 1) * pooledSize), b * pooledSize);
  }
  const pictures = rows.map((row) => Math.floor(row / perPicture));
  return {
    hidden: floats([rows.length, bank.tokens, hiddenSize / bank.tokens], hidden),
    pooled: floats([rows.length, pooledSize], pooled),
    time_ids: timeIdsFeed(data, pictures),
  };
}

/** What a UNet is told of some pictures: a random caption of each, dropped for a share, and sizes. */
export function conditionFeeds(
  material: { data: Dataset; bank: CaptionBank },
  indices: readonly number[],
  random: Generator,
  dropPrompt = 0,
): ReturnType<typeof captionFeeds> {
  const { perPicture } = material.bank;
  const drawn = indices.map((index) => ({
    row: index * perPicture + random.integer(perPicture),
    dropped: random.random() < dropPrompt,
  }));
  return captionFeeds(
    material,
    drawn.map(({ row }) => row),
    drawn.map(({ dropped }) => dropped),
  );
}

/** Where the prompts of a UNet's training come from. */
export interface PromptSource {
  /** Tokens of a prompt, and the width of its pooled embedding. */
  tokens: number;
  pooled: number;
  /** What the network is given in a graph. */
  prompt(config: UNetConfig, size: UNetBatch): Prompt;
  /** The inputs of that for some pictures. */
  feeds(indices: readonly number[], random: Generator, dropPrompt: number): Record<string, HostTensor>;
}

/** Captions that were encoded before. */
export function encodedPrompts(data: Dataset, bank: CaptionBank): PromptSource {
  return {
    tokens: bank.tokens,
    pooled: bank.pooledSize,
    prompt: encodedPrompt,
    feeds: (...at) => conditionFeeds({ data, bank }, ...at),
  };
}

/** Captions through text encoders that are trained with the UNet; every use of a picture has a new one. */
export function trainedPrompts(data: Dataset, configs: TextConfigs, tokenizers: TokenizerPair): PromptSource {
  return {
    tokens: configs.textEncoder.max_position_embeddings,
    pooled: configs.textEncoder2.projection_dim,
    prompt: (_, size) => trainedPrompt(configs, size),
    feeds: (indices, random, dropPrompt) => {
      const captions = indices.map((index) => data.caption(index, () => random.random()));
      const keep = indices.map(() => (random.random() < dropPrompt ? 0 : 1));
      return {
        ...tokenFeeds(tokenizers, captions),
        keep: floats([indices.length], keep),
        time_ids: timeIdsFeed(data, indices),
      };
    },
  };
}

export interface UNetJobOptions {
  batch: number;
  seed: number;
  /** Share of prompts dropped, for classifier-free guidance. */
  dropPrompt: number;
  /** γ of min-SNR weighting (Hang et al. 2023); 0 for none. */
  minSnr: number;
  weighting: SnrWeighting;
  timestepBias: TimestepBias;
  alphasCumprod: Float32Array;
  /** Pixels per latent position. */
  scaleFactor: number;
  /** Weights to start from. */
  start?: Readonly<Record<string, HostTensor>>;
  preview?: Job["preview"];
}

/**
 * @param latents normalised latents of pictures of one bucket, [B,C,h,w].
 */
export function unetJob(
  config: UNetConfig,
  data: Dataset,
  latents: (indices: readonly number[]) => Promise<FloatTensor>,
  prompts: PromptSource,
  options: UNetJobOptions,
): Job {
  const { batch, seed, dropPrompt, minSnr, weighting, timestepBias, alphasCumprod, scaleFactor } = options;
  const [first, ...variants] = data.buckets.map((bucket) => {
    const [height, width] = [bucket.height / scaleFactor, bucket.width / scaleFactor];
    const size = { batch, height, width, tokens: prompts.tokens, pooled: prompts.pooled };
    return unetLoss(config, size, prompts.prompt(config, size));
  });
  const sampler = batches(data, batch, seed);
  return {
    ...singleLoss(first, variants),
    batch,
    start: options.start,
    preview: options.preview,
    feeds: async (at) => {
      const g = batchGenerator(seed, at);
      const { indices } = sampler.at(at);
      const clean = await latents(indices);
      const n = clean.data.length / batch;
      const target = g.randn(clean.shape);
      const sample = floats(target.shape);
      const timestep = floats([batch]);
      const weight = floats([batch]);
      const offset = g.random();
      for (let b = 0; b < batch; b++) {
        // spread evenly, which makes the loss less noisy (Kingma et al. 2021, §4.3); pictures come in random order
        const place = biasedPlace((b + offset) / batch, timestepBias);
        const t = Math.min(Math.floor(place * alphasCumprod.length), alphasCumprod.length - 1);
        const alpha = alphasCumprod[t];
        const [signal, noise] = [Math.sqrt(alpha), Math.sqrt(1 - alpha)];
        for (let i = b * n; i < (b + 1) * n; i++)
          sample.data[i] = signal * clean.data[i] + noise * target.data[i];
        timestep.data[b] = t;
        weight.data[b] = noiseErrorWeight(alpha / (1 - alpha), minSnr, weighting);
      }
      return { sample, target, timestep, weight, ...prompts.feeds(indices, g, dropPrompt) };
    },
  };
}
