/**
 * @file Configs told from the shapes of tensors, for files that carry none. What shapes do not tell is as in SDXL
 * (Podell et al. 2023): heads of 64 channels, norms of 32 groups, quick GELU in the first text encoder.
 */

import {
  type ClipTextConfig,
  clipTextConfig,
  type TinyConfig,
  tinyConfig,
  type UNetConfig,
  unetConfig,
  type VaeConfig,
  vaeConfig,
} from "../models/index.ts";
import type { UNetLayout } from "../weights/index.ts";

/** Tensors of one network, by name. */
export type Shapes = ReadonlyMap<string, { shape: readonly number[] }>;
/** Of diffusers and transformers, or of single-file checkpoints. */
export type Naming = "diffusers" | "checkpoint";

const HEAD = 64;
/** diffusers' width of each of the six sizes, where no text encoder tells. */
const SIZE_WIDTH = 256;

/** One resnet, and the depth of the transformer behind it; 0 for none. */
interface Layer {
  channels: number;
  depth: number;
}

function shapeOf(shapes: Shapes, name: string): readonly number[] {
  const found = shapes.get(name);
  if (!found) throw new Error(`there is no tensor ${name}, which tells how the network is built`);
  return found.shape;
}

/** How many of a numbered name there are, from 0 on. */
function count(shapes: Shapes, name: (i: number) => string): number {
  let n = 0;
  while (shapes.has(name(n))) n++;
  return n;
}

function layerAt(shapes: Shapes, resnet: string, transformer: string): Layer | undefined {
  const conv = shapes.get(resnet);
  const depth = count(shapes, (i) => `${transformer}.transformer_blocks.${i}.norm1.weight`);
  return conv && { channels: conv.shape[0], depth };
}

/** The levels on the way down, from the picture. */
function downLevels(shapes: Shapes, naming: Naming): Layer[][] {
  const levels: Layer[][] = [[]];
  if (naming === "checkpoint") {
    for (let n = 1; ; n++) {
      const at = `input_blocks.${n}`;
      const layer = layerAt(shapes, `${at}.0.in_layers.2.weight`, `${at}.1`);
      if (layer) levels[levels.length - 1].push(layer);
      else if (shapes.has(`${at}.0.op.weight`)) levels.push([]);
      else return levels;
    }
  }
  for (let i = 0; ; i++) {
    levels[i] = layersOf(shapes, `down_blocks.${i}`);
    if (!shapes.has(`down_blocks.${i}.downsamplers.0.conv.weight`)) return levels;
  }
}

function layersOf(shapes: Shapes, block: string): Layer[] {
  const n = count(shapes, (j) => `${block}.resnets.${j}.conv1.weight`);
  return Array.from(
    { length: n },
    (_, j) => layerAt(shapes, `${block}.resnets.${j}.conv1.weight`, `${block}.attentions.${j}`)!,
  );
}

/** The levels on the way up, from the latents; each has a layer more than on the way down. */
function upLevels(shapes: Shapes, naming: Naming, down: readonly Layer[][]): Layer[][] {
  let n = 0;
  return [...down].reverse().map((level, i) => {
    if (naming === "diffusers") return layersOf(shapes, `up_blocks.${i}`);
    const at = (j: number) => `output_blocks.${n + j}`;
    const layers = [...level, undefined].flatMap(
      (_, j) => layerAt(shapes, `${at(j)}.0.in_layers.2.weight`, `${at(j)}.1`) ?? [],
    );
    n += level.length + 1;
    return layers;
  });
}

/** The one value of a list whose values are all alike. */
function uniform<T>(values: readonly T[]): T | undefined {
  return values.every((v) => v === values[0]) ? values[0] : undefined;
}

/** What the names of a UNet depend on; it is no matter how many heads it has. */
export function unetLayoutOf(shapes: Shapes, naming: Naming): UNetLayout {
  const down = downLevels(shapes, naming);
  const attends = (level: readonly Layer[]) => level.some(({ depth }) => depth > 0);
  return {
    block_out_channels: down.map(([first]) => first?.channels ?? 0),
    down_block_types: down.map((level) => (attends(level) ? "CrossAttnDownBlock2D" : "DownBlock2D")),
    up_block_types: upLevels(shapes, naming, down).map((level) =>
      attends(level) ? "CrossAttnUpBlock2D" : "UpBlock2D",
    ),
    layers_per_block: uniform(down.map((level) => level.length)) ?? down.map((level) => level.length),
  };
}

/** Depths of the transformers, level by level. */
function depthsOf(shapes: Shapes, naming: Naming): Partial<UNetConfig> {
  const down = downLevels(shapes, naming);
  const up = upLevels(shapes, naming, down);
  const depths = (level: readonly Layer[]) => level.map(({ depth }) => Math.max(1, depth));
  const plain = down.map((level) => uniform(depths(level)) ?? depths(level));
  const mirrored = up.every((level, i) => uniform(depths(level)) === plain[plain.length - 1 - i]);
  return {
    transformer_layers_per_block: plain,
    ...(mirrored ? {} : { reverse_transformer_layers_per_block: up.map(depths) }),
  };
}

/**
 * @param pooled width of the pooled text embedding, where it is known.
 * @throws a sentence when the tensors are not those of such a UNet.
 */
export function unetConfigOf(shapes: Shapes, naming: Naming, pooled?: number): UNetConfig {
  const ours = naming === "diffusers";
  const layout = unetLayoutOf(shapes, naming);
  const channels = layout.block_out_channels;
  const narrow = channels.find((c) => c % HEAD !== 0 || c === 0);
  if (narrow !== undefined)
    throw new Error(`the UNet has ${narrow} channels, which do not tell its number of attention heads`);
  const find = (end: string) => [...shapes.keys()].find((key) => key.endsWith(end)) ?? end;
  const added = shapes.get(ours ? "add_embedding.linear_1.weight" : "label_emb.0.0.weight")?.shape[1];
  return unetConfig({
    ...layout,
    ...depthsOf(shapes, naming),
    in_channels: shapeOf(shapes, ours ? "conv_in.weight" : "input_blocks.0.0.weight")[1],
    out_channels: shapeOf(shapes, ours ? "conv_out.weight" : "out.2.weight")[0],
    attention_head_dim: channels.map((c) => c / HEAD),
    cross_attention_dim: shapeOf(shapes, find(".attn2.to_k.weight"))[1],
    use_linear_projection: shapeOf(shapes, find(".proj_in.weight")).length === 2,
    ...(added === undefined
      ? {}
      : {
          addition_embed_type: "text_time",
          addition_time_embed_dim: pooled === undefined ? SIZE_WIDTH : (added - pooled) / 6,
          projection_class_embeddings_input_dim: added,
        }),
  });
}

/**
 * Its decoder alone is looked at.
 * @param like a config that has what shapes do not tell.
 * @throws a sentence when the tensors are not those of such a VAE.
 */
export function vaeConfigOf(shapes: Shapes, naming: Naming, like?: VaeConfig): VaeConfig {
  const ours = naming === "diffusers";
  const block = (i: number, j: number) =>
    ours ? `decoder.up_blocks.${i}.resnets.${j}.conv1.weight` : `decoder.up.${i}.block.${j}.conv1.weight`;
  const levels = count(shapes, (i) => block(i, 0));
  const channels = Array.from({ length: levels }, (_, i) => shapeOf(shapes, block(i, 0))[0]);
  return vaeConfig({
    ...like,
    latent_channels: shapeOf(shapes, "decoder.conv_in.weight")[1],
    block_out_channels: ours ? channels.reverse() : channels,
    layers_per_block: count(shapes, (j) => block(0, j)) - 1,
    use_quant_conv: shapes.has("quant_conv.weight"),
    use_post_quant_conv: shapes.has("post_quant_conv.weight"),
    mid_block_add_attention: shapes.has(
      ours ? "decoder.mid_block.attentions.0.to_q.weight" : "decoder.mid.attn_1.q.weight",
    ),
  });
}

/** @param shapes with diffusers' names; the decoder alone is looked at. */
export function tinyConfigOf(shapes: Shapes): TinyConfig {
  const layer = (i: number) => shapes.get(`decoder.layers.${i}.weight`)?.shape;
  const [width, latents] = shapeOf(shapes, "decoder.layers.0.weight");
  const blocks: number[] = [];
  const channels: number[] = [];
  for (let i = 2, last = false; !last; i++) {
    const name = (n: number) => `decoder.layers.${i + n}.conv.0.weight`;
    const n = count(shapes, name);
    channels.push(n > 0 ? shapeOf(shapes, name(0))[0] : width);
    blocks.push(n);
    i += n;
    last = layer(i) !== undefined; // a convolution right behind blocks; elsewhere an upsampling is between
    if (!last && layer(++i) === undefined) shapeOf(shapes, `decoder.layers.${i}.weight`);
  }
  return tinyConfig({
    latent_channels: latents,
    encoder_block_out_channels: [...channels].reverse(),
    decoder_block_out_channels: channels,
    num_encoder_blocks: [...blocks].reverse(),
    num_decoder_blocks: blocks,
  });
}

/** Names that tell how a text encoder is built. */
const CLIP_NAMES = {
  diffusers: {
    tokens: "text_model.embeddings.token_embedding.weight",
    positions: "text_model.embeddings.position_embedding.weight",
    layer: (i: number) => `text_model.encoder.layers.${i}.layer_norm1.weight`,
    wide: "text_model.encoder.layers.0.mlp.fc1.weight",
    projection: "text_projection.weight",
  },
  checkpoint: {
    tokens: "token_embedding.weight",
    positions: "positional_embedding",
    layer: (i: number) => `transformer.resblocks.${i}.ln_1.weight`,
    wide: "transformer.resblocks.0.mlp.c_fc.weight",
    projection: "text_projection",
  },
};

/** @param naming "checkpoint" for that of OpenCLIP. @throws a sentence when the tensors are not those of CLIP. */
export function clipConfigOf(
  shapes: Shapes,
  naming: Naming,
  hidden_act: ClipTextConfig["hidden_act"],
): ClipTextConfig {
  const names = CLIP_NAMES[naming];
  const [vocab_size, width] = shapeOf(shapes, names.tokens);
  if (width % HEAD !== 0)
    throw new Error(`a text encoder is ${width} wide, which does not tell its number of attention heads`);
  const projection = shapes.get(names.projection)?.shape;
  return clipTextConfig({
    hidden_size: width,
    intermediate_size: shapeOf(shapes, names.wide)[0],
    num_hidden_layers: count(shapes, names.layer),
    num_attention_heads: width / HEAD,
    hidden_act,
    projection_dim: projection?.[naming === "diffusers" ? 0 : 1] ?? width,
    vocab_size,
    max_position_embeddings: shapeOf(shapes, names.positions)[0],
  });
}
