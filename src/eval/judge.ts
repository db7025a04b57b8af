/** @file The judge: an image tower and the text tower it was trained with. */

import { join } from "node:path";
import { graph, input, symbol } from "../graph/index.ts";
import {
  type ClipVisionConfig,
  clipTextConfig,
  clipTextWithProjection,
  clipVision,
  clipVisionConfig,
} from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { readJson, readTokenizer, weightsFile, weightsOf } from "../pipelines/index.ts";
import { writePlanes } from "../platform/index.ts";
import { compile, type Program } from "../runtime/index.ts";
import { floats } from "../tensor/index.ts";
import type { ClipTokenizer } from "../tokenizers/index.ts";

const BATCH = 32;

/** What the judge sees in a picture. */
export interface ImageFeatures {
  /** Pooled state of the tower, for Fréchet distances. */
  features: Float32Array;
  /** Projected, of unit length, for comparisons with texts. */
  embedding: Float32Array;
}

export class Judge implements AsyncDisposable {
  /** Side of the pictures it looks at. */
  readonly size: number;
  private readonly tokenizer: ClipTokenizer;
  private readonly image: Program;
  private readonly text: Program;

  private constructor(config: ClipVisionConfig, tokenizer: ClipTokenizer, image: Program, text: Program) {
    this.size = config.image_size;
    this.tokenizer = tokenizer;
    this.image = image;
    this.text = text;
  }

  /** Loads image_encoder, text_encoder_2 and tokenizer_2 of a model folder. */
  static async load(folder: string): Promise<Judge> {
    const vision = clipVisionConfig(await readJson(join(folder, "image_encoder", "config.json")));
    const textConfig = clipTextConfig(await readJson(join(folder, "text_encoder_2", "config.json")));
    if (vision.projection_dim !== textConfig.projection_dim)
      throw new Error(
        `${folder}: image_encoder projects to ${vision.projection_dim} features, text_encoder_2 to ` +
          `${textConfig.projection_dim}; a judge needs towers that were trained together`,
      );
    const tokenizer = await readTokenizer(join(folder, "tokenizer_2"));
    const B = symbol("B");
    const pixels = input("pixels", "float32", [B, vision.num_channels, vision.image_size, vision.image_size]);
    const { pooled, imageEmbeds } = clipVision(rootScope(), vision, pixels);
    const images = graph({ features: pooled, embedding: imageEmbeds });
    const { textEmbeds } = clipTextWithProjection(rootScope(), textConfig, {
      ids: input("ids", "int64", [B, tokenizer.maxLength]),
      end: input("end", "int64", [B]),
    });
    const texts = graph({ embedding: textEmbeds });
    const [image, text] = await Promise.all([
      weightsOf(images, { "": weightsFile(join(folder, "image_encoder")) }).then((w) => compile(images, w)),
      weightsOf(texts, { "": weightsFile(join(folder, "text_encoder_2")) }).then((w) => compile(texts, w)),
    ]);
    return new Judge(vision, tokenizer, image, text);
  }

  /** Features of RGB pictures of the judge's own size. */
  async see(pictures: readonly Uint8Array[]): Promise<ImageFeatures[]> {
    const S = this.size;
    const out: ImageFeatures[] = [];
    for (let start = 0; start < pictures.length; start += BATCH) {
      const some = pictures.slice(start, start + BATCH);
      const pixels = floats([some.length, 3, S, S]);
      some.forEach((rgb, b) => {
        if (rgb.length !== 3 * S * S)
          throw new Error(`the judge looks at pictures of ${S}×${S} pixels; got ${rgb.length / 3} pixels`);
        writePlanes(rgb, pixels.data, b * 3 * S * S);
      });
      const { features, embedding } = await this.image.run({ pixels });
      const [f, e] = [
        rowsOf(features.data as Float32Array, some.length),
        rowsOf(embedding.data as Float32Array, some.length),
      ];
      for (const [i, row] of e.entries()) out.push({ features: f[i], embedding: unit(row) });
    }
    return out;
  }

  /** Embeddings of captions, of unit length. */
  async read(captions: readonly string[]): Promise<Float32Array[]> {
    const out: Float32Array[] = [];
    for (let start = 0; start < captions.length; start += BATCH) {
      const some = captions.slice(start, start + BATCH);
      const { embedding } = await this.text.run(this.tokenizer.encodeBatch(some));
      out.push(...rowsOf(embedding.data as Float32Array, some.length).map(unit));
    }
    return out;
  }

  async dispose(): Promise<void> {
    await Promise.all([this.image.dispose(), this.text.dispose()]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

function rowsOf(data: Float32Array, count: number): Float32Array[] {
  const width = data.length / count;
  return Array.from({ length: count }, (_, i) => data.slice(i * width, (i + 1) * width));
}

function unit(v: Float32Array): Float32Array {
  const norm = Math.sqrt(v.reduce((sum, x) => sum + x * x, 0));
  return v.map((x) => x / norm);
}
