/** @file What the trainer can train: jobs for the autoencoder, the CLIP pair and the teacher UNet. */

import { join } from "node:path";
import { caption, contactSheet, type Icons } from "../data/index.ts";
import { graph, input, symbol } from "../graph/index.ts";
import { type UNetConfig, type VaeConfig, vaeDecode, vaeEncode } from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { atomicWrite, readPlanes, writePlanes } from "../platform/index.ts";
import { compile } from "../runtime/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor } from "../tensor/index.ts";
import type { ClipTokenizer } from "../tokenizers/index.ts";
import { type ClipConfigs, clipLoss } from "./clip.ts";
import type { Job } from "./fit.ts";
import { encodePrompt, type TextConfigs, unetLoss } from "./unet.ts";
import { type VaeLossOptions, vaeLoss } from "./vae.ts";

/** A generator for one micro-batch, so that every batch is known from its place alone. */
export function batchGenerator(
  seed: number,
  { step, replica, replicas, micro }: { step: number; replica: number; replicas: number; micro: number },
): Generator {
  const g = new Generator((seed * 1_000_003 + step * 8191 + replica + micro * replicas) % 2 ** 32);
  for (let i = 0; i < 8; i++) g.uint32();
  return g;
}

export function picturesAt(data: Icons, indices: readonly number[]): FloatTensor {
  const out = floats([indices.length, 3, data.size, data.size]);
  indices.forEach((index, i) => {
    writePlanes(data.image(index), out.data, i * 3 * data.size ** 2);
  });
  return out;
}

export function vaeJob(
  config: VaeConfig,
  data: Icons,
  {
    batch,
    seed,
    out,
    frozen,
    ...weights
  }: VaeLossOptions & { batch: number; seed: number; out: string; frozen?: ReadonlyMap<string, HostTensor> },
): Job {
  const side = data.size / 2 ** (config.block_out_channels.length - 1);
  const { loss, metrics } = vaeLoss(config, { batch, size: data.size }, weights);
  return {
    loss,
    metrics,
    batch,
    frozen,
    feeds: async (at) => {
      const g = batchGenerator(seed, at);
      const indices = Array.from({ length: batch }, () => g.integer(data.length));
      return {
        pictures: picturesAt(data, indices),
        noise: g.randn([batch, config.latent_channels, side, side]),
      };
    },
    preview: async (tensors, step) => {
      const pictures = input("pictures", "float32", [symbol("B"), 3, data.size, data.size]);
      const mean = vaeEncode(rootScope(), config, pictures).slice(1, 0, config.latent_channels);
      const restored = vaeDecode(rootScope(), config, mean);
      await using program = await compile(graph({ restored }), {
        weights: new Map([...(frozen ?? []), ...Object.entries(tensors)]),
        threads: 1,
      });
      const indices = Array.from({ length: 24 }, (_, i) => Math.floor((i * data.length) / 24));
      const result = await program.run({ pictures: picturesAt(data, indices) });
      const planes = result.restored.data as Float32Array;
      const n = planes.length / 24;
      const sheet = indices.flatMap((index, i) => [
        { data: data.image(index), width: data.size, height: data.size },
        { data: readPlanes(planes.subarray(i * n, (i + 1) * n)), width: data.size, height: data.size },
      ]);
      await atomicWrite(join(out, `samples-${step}.png`), await contactSheet(sheet, { columns: 12 }));
    },
  };
}

/** A copy of a picture on white, moved by up to `reach` pixels. */
function shifted(rgb: Uint8Array, size: number, reach: number, g: Generator): Uint8Array {
  const [dy, dx] = [g.integer(2 * reach + 1) - reach, g.integer(2 * reach + 1) - reach];
  const out = new Uint8Array(rgb.length).fill(255);
  for (let y = Math.max(0, dy); y < Math.min(size, size + dy); y++) {
    const from = Math.max(0, dx);
    const to = Math.min(size, size + dx);
    out.set(
      rgb.subarray(((y - dy) * size + from - dx) * 3, ((y - dy) * size + to - dx) * 3),
      (y * size + from) * 3,
    );
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

export function clipJob(
  configs: ClipConfigs,
  data: Icons,
  {
    batch,
    seed,
    shift,
    tokenizers,
  }: { batch: number; seed: number; shift: number; tokenizers: TokenizerPair },
): Job {
  const { loss, metrics } = clipLoss(configs, { batch });
  const diagonal = floats([batch, batch]);
  for (let i = 0; i < batch; i++) diagonal.data[i * (batch + 1)] = 1;
  return {
    loss,
    metrics,
    batch,
    feeds: async (at) => {
      const g = batchGenerator(seed, at);
      const pixels = floats([batch, 3, data.size, data.size]);
      const texts: string[] = [];
      const taken = new Set<number>();
      while (taken.size < batch) taken.add(g.integer(data.length)); // a picture twice would be its own rival
      for (const index of taken) {
        writePlanes(
          shifted(data.image(index), data.size, shift, g),
          pixels.data,
          texts.length * 3 * data.size ** 2,
        );
        texts.push(caption(data.rows[index], () => g.random()));
      }
      return { pixels, diagonal, ...tokenFeeds(tokenizers, texts) };
    },
  };
}

export interface Latents {
  /** Normalised, [N,C,s,s]. */
  data: FloatTensor;
  /** Per channel, of the raw latents: what `latents_mean` and `latents_std` in the config say. */
  mean: number[];
  std: number[];
}

/** Encodes all pictures (posterior means) and normalises each channel to zero mean and unit deviation. */
export async function encodeLatents(
  config: VaeConfig,
  weights: ReadonlyMap<string, HostTensor>,
  data: Icons,
): Promise<Latents> {
  const C = config.latent_channels;
  const pictures = input("pictures", "float32", [symbol("B"), 3, data.size, data.size]);
  const mean = vaeEncode(rootScope(), config, pictures).slice(1, 0, C);
  await using program = await compile(graph({ mean }), { weights });
  const side = data.size / 2 ** (config.block_out_channels.length - 1);
  const all = floats([data.length, C, side, side]);
  for (let start = 0; start < data.length; start += 64) {
    const indices = Array.from({ length: Math.min(64, data.length - start) }, (_, i) => start + i);
    const out = await program.run({ pictures: picturesAt(data, indices) });
    all.data.set(out.mean.data as Float32Array, start * C * side * side);
  }
  const area = side * side;
  const means: number[] = [];
  const deviations: number[] = [];
  for (let c = 0; c < C; c++) {
    let [sum, squares] = [0, 0];
    for (let n = 0; n < data.length; n++)
      for (let i = (n * C + c) * area; i < (n * C + c + 1) * area; i++) {
        sum += all.data[i];
        squares += all.data[i] ** 2;
      }
    const count = data.length * area;
    means.push(sum / count);
    deviations.push(Math.sqrt(squares / count - (sum / count) ** 2));
    for (let n = 0; n < data.length; n++)
      for (let i = (n * C + c) * area; i < (n * C + c + 1) * area; i++)
        all.data[i] = (all.data[i] - means[c]) / deviations[c];
  }
  return { data: all, mean: means, std: deviations };
}

/** Encodings of several random captions of every picture: the frozen text encoders run once, not every step. */
export interface CaptionBank {
  perPicture: number;
  /** Floats of one caption's hidden states and pooled embedding. */
  hiddenSize: number;
  pooledSize: number;
  hidden: Float32Array;
  pooled: Float32Array;
}

export async function encodeCaptions(
  text: TextConfigs,
  weights: ReadonlyMap<string, HostTensor>,
  tokenizers: TokenizerPair,
  data: Icons,
  { perPicture, seed }: { perPicture: number; seed: number },
): Promise<CaptionBank> {
  const T = text.textEncoder.max_position_embeddings;
  const [ids, ids2] = ["ids", "ids_2"].map((n) => input(n, "int64", [symbol("B"), T]));
  const outputs = encodePrompt(text, { ids, ids2, end: input("end", "int64", [symbol("B")]) });
  await using program = await compile(graph({ ...outputs }), { weights });
  const count = data.length * perPicture;
  const pooledSize = text.textEncoder2.projection_dim;
  const hiddenSize = T * (text.textEncoder.hidden_size + text.textEncoder2.hidden_size);
  const bank = {
    perPicture,
    hiddenSize,
    pooledSize,
    hidden: new Float32Array(count * hiddenSize),
    pooled: new Float32Array(count * pooledSize),
  };
  const g = new Generator(seed);
  const random = () => g.random();
  for (let start = 0; start < count; start += 64) {
    const rows = Array.from({ length: Math.min(64, count - start) }, (_, i) =>
      caption(data.rows[Math.floor((start + i) / perPicture)], random),
    );
    const out = await program.run(tokenFeeds(tokenizers, rows));
    bank.hidden.set(out.hidden.data as Float32Array, start * hiddenSize);
    bank.pooled.set(out.pooled.data as Float32Array, start * pooledSize);
  }
  return bank;
}

export interface UNetJobOptions {
  batch: number;
  seed: number;
  /** Share of prompts dropped, for classifier-free guidance. */
  dropPrompt: number;
  /** γ of min-SNR weighting (Hang et al. 2023); 0 for none. */
  minSnr: number;
  alphasCumprod: Float64Array | Float32Array;
  /** Weights to start from. */
  start?: Readonly<Record<string, HostTensor>>;
  preview?: Job["preview"];
}

export function unetJob(
  config: UNetConfig,
  data: Icons,
  latents: Latents,
  bank: CaptionBank,
  options: UNetJobOptions,
): Job {
  const { batch, seed, dropPrompt, minSnr, alphasCumprod } = options;
  const [, C, side] = latents.data.shape;
  const n = C * side * side;
  const width = config.cross_attention_dim;
  const tokens = bank.hiddenSize / width;
  const { loss, metrics } = unetLoss(config, { batch, side, tokens, pooled: bank.pooledSize });
  return {
    loss,
    metrics,
    batch,
    start: options.start,
    preview: options.preview,
    feeds: async (at) => {
      const g = batchGenerator(seed, at);
      const target = g.randn([batch, C, side, side]);
      const sample = floats(target.shape);
      const hidden = floats([batch, tokens, width]);
      const pooled = floats([batch, bank.pooledSize]);
      const timestep = floats([batch]);
      const weight = floats([batch]);
      const timeIds = floats([batch, 6]);
      for (let b = 0; b < batch; b++) {
        const index = g.integer(data.length);
        const t = g.integer(alphasCumprod.length);
        const alpha = alphasCumprod[t];
        const [signal, noise] = [Math.sqrt(alpha), Math.sqrt(1 - alpha)];
        for (let i = 0; i < n; i++)
          sample.data[b * n + i] = signal * latents.data.data[index * n + i] + noise * target.data[b * n + i];
        timestep.data[b] = t;
        const snr = alpha / (1 - alpha);
        weight.data[b] = minSnr > 0 ? Math.min(snr, minSnr) / snr : 1;
        timeIds.data.set([data.size, data.size, 0, 0, data.size, data.size], b * 6);
        const at = index * bank.perPicture + g.integer(bank.perPicture);
        if (g.random() < dropPrompt) continue; // zeros, as SDXL's empty prompt
        hidden.data.set(
          bank.hidden.subarray(at * bank.hiddenSize, (at + 1) * bank.hiddenSize),
          b * bank.hiddenSize,
        );
        pooled.data.set(
          bank.pooled.subarray(at * bank.pooledSize, (at + 1) * bank.pooledSize),
          b * bank.pooledSize,
        );
      }
      return { sample, target, timestep, weight, hidden, pooled, time_ids: timeIds };
    },
  };
}
