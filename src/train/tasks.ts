/** @file What the trainer can train: jobs for the autoencoder, the CLIP pair and the teacher UNet. */

import { join } from "node:path";
import { caption, contactSheet, type Icons } from "../data/index.ts";
import { graph, input, symbol } from "../graph/index.ts";
import { type VaeConfig, vaeDecode, vaeEncode } from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { compile } from "../runtime/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor } from "../tensor/index.ts";
import type { ClipTokenizer } from "../tokenizers/index.ts";
import { atomicWrite } from "../weights/index.ts";
import { type ClipConfigs, clipLoss } from "./clip.ts";
import type { Job } from "./fit.ts";
import { vaeLoss, type VaeLossOptions } from "./vae.ts";

/** RGB bytes → [3,S,S] floats in [−1,1], written at an offset. */
export function toPlanes(rgb: Uint8Array, out: Float32Array, offset: number): void {
  const n = rgb.length / 3;
  for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++) out[offset + c * n + i] = rgb[3 * i + c] / 127.5 - 1;
}

/** [3,S,S] around [−1,1] → RGB bytes. */
export function fromPlanes(planes: Float32Array): Uint8Array {
  const n = planes.length / 3;
  const rgb = new Uint8Array(planes.length);
  for (let i = 0; i < n; i++)
    for (let c = 0; c < 3; c++)
      rgb[3 * i + c] = Math.min(255, Math.max(0, Math.round((planes[c * n + i] + 1) * 127.5)));
  return rgb;
}

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
    toPlanes(data.image(index), out.data, i * 3 * data.size ** 2);
  });
  return out;
}

export function vaeJob(
  config: VaeConfig,
  data: Icons,
  { batch, seed, out, ...weights }: VaeLossOptions & { batch: number; seed: number; out: string },
): Job {
  const side = data.size / 2 ** (config.block_out_channels.length - 1);
  const { loss, metrics } = vaeLoss(config, { batch, size: data.size }, weights);
  return {
    loss,
    metrics,
    batch,
    feeds: async (at) => {
      const g = batchGenerator(seed, at);
      const indices = Array.from({ length: batch }, () => g.integer(data.length));
      return { pictures: picturesAt(data, indices), noise: g.randn([batch, config.latent_channels, side, side]) };
    },
    preview: async (tensors, step) => {
      const pictures = input("pictures", "float32", [symbol("B"), 3, data.size, data.size]);
      const mean = vaeEncode(rootScope(), config, pictures).slice(1, 0, config.latent_channels);
      const restored = vaeDecode(rootScope(), config, mean);
      await using program = await compile(graph({ restored }), { weights: new Map(Object.entries(tensors)), threads: 1 });
      const indices = Array.from({ length: 24 }, (_, i) => Math.floor((i * data.length) / 24));
      const result = await program.run({ pictures: picturesAt(data, indices) });
      const planes = result.restored.data as Float32Array;
      const n = planes.length / 24;
      const sheet = indices.flatMap((index, i) => [
        { data: data.image(index), width: data.size, height: data.size },
        { data: fromPlanes(planes.subarray(i * n, (i + 1) * n)), width: data.size, height: data.size },
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
    out.set(rgb.subarray(((y - dy) * size + from - dx) * 3, ((y - dy) * size + to - dx) * 3), (y * size + from) * 3);
  }
  return out;
}

export interface TokenizerPair {
  tokenizer: ClipTokenizer;
  tokenizer2: ClipTokenizer;
}

/** Token inputs of both text encoders, under the names that the graphs use. */
export function tokenFeeds({ tokenizer, tokenizer2 }: TokenizerPair, texts: readonly string[]): Record<"ids" | "ids_2" | "end", HostTensor> {
  const { ids, end } = tokenizer.encodeBatch(texts);
  return { ids, end, ids_2: tokenizer2.encodeBatch(texts).ids };
}

export function clipJob(
  configs: ClipConfigs,
  data: Icons,
  { batch, seed, shift, tokenizers }: { batch: number; seed: number; shift: number; tokenizers: TokenizerPair },
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
        toPlanes(shifted(data.image(index), data.size, shift, g), pixels.data, texts.length * 3 * data.size ** 2);
        texts.push(caption(data.rows[index], () => g.random()));
      }
      return { pixels, diagonal, ...tokenFeeds(tokenizers, texts) };
    },
  };
}
