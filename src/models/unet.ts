/**
 * @file UNet2DConditionModel of SDXL (Podell et al. 2023), with the parameter names of diffusers.
 * B batch, C channels, H W latent, T text tokens, D text width, E time-embedding width, L = H·W.
 */

import { z } from "zod";
import { type Dim, mulDim, type Value } from "../graph/index.ts";
import {
  conv2d,
  fanIn,
  groupNorm,
  layerNorm,
  linear,
  located,
  type Scope,
  timestepEmbedding,
} from "../nn/index.ts";
import { attention, concat, gelu, project, resizeNearest, silu } from "../ops/index.ts";
import { parseConfig } from "./config.ts";

const perBlock = z.union([z.int().positive(), z.array(z.int().positive())]);
const depths = z.union([
  z.int().positive(),
  z.array(z.union([z.int().positive(), z.array(z.int().positive())])),
]);

const schema = z.object({
  in_channels: z.int().positive().default(4),
  out_channels: z.int().positive().default(4),
  sample_size: z.union([z.int().positive(), z.null()]).default(128),
  block_out_channels: z.array(z.int().positive()).min(1).default([320, 640, 1280]),
  down_block_types: z
    .array(z.enum(["DownBlock2D", "CrossAttnDownBlock2D"]))
    .default(["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]),
  up_block_types: z
    .array(z.enum(["UpBlock2D", "CrossAttnUpBlock2D"]))
    .default(["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]),
  mid_block_type: z.literal("UNetMidBlock2DCrossAttn").default("UNetMidBlock2DCrossAttn"),
  layers_per_block: perBlock.default(2),
  transformer_layers_per_block: depths.default([1, 2, 10]),
  reverse_transformer_layers_per_block: depths.nullish(),
  /** diffusers reads this as the number of heads. */
  attention_head_dim: perBlock.default([5, 10, 20]),
  num_attention_heads: perBlock.nullish(),
  cross_attention_dim: z.int().positive().default(2048),
  use_linear_projection: z.boolean().default(true),
  act_fn: z.enum(["silu", "swish"]).default("silu"),
  norm_num_groups: z.int().positive().default(32),
  norm_eps: z.number().positive().default(1e-5),
  flip_sin_to_cos: z.boolean().default(true),
  freq_shift: z.number().default(0),
  downsample_padding: z.literal(1).default(1),
  resnet_time_scale_shift: z.literal("default").default("default"),
  addition_embed_type: z.literal("text_time").nullish(),
  addition_time_embed_dim: z.int().positive().nullish(),
  projection_class_embeddings_input_dim: z.int().positive().nullish(),
  only_cross_attention: z.literal(false).default(false),
  dual_cross_attention: z.literal(false).default(false),
  attention_type: z.literal("default").default("default"),
  center_input_sample: z.literal(false).default(false),
  mid_block_scale_factor: z.literal(1).default(1),
  time_embedding_type: z.literal("positional").default("positional"),
  time_embedding_act_fn: z.null().default(null),
  timestep_post_act: z.null().default(null),
  class_embed_type: z.null().default(null),
  num_class_embeds: z.null().default(null),
  encoder_hid_dim: z.null().default(null),
  encoder_hid_dim_type: z.null().default(null),
  time_cond_proj_dim: z.null().default(null),
});

export type UNetConfig = z.infer<typeof schema>;

/** @throws a sentence when the config is not of an SDXL-family UNet. */
export function unetConfig(json: unknown): UNetConfig {
  const config = parseConfig("UNet2DConditionModel", schema, json);
  const levels = config.block_out_channels.length;
  for (const field of ["down_block_types", "up_block_types"] as const)
    if (config[field].length !== levels)
      throw new Error(
        `UNet2DConditionModel config: ${field} has ${config[field].length} entries; block_out_channels has ${levels}`,
      );
  if (
    config.addition_embed_type &&
    !(config.addition_time_embed_dim && config.projection_class_embeddings_input_dim)
  )
    throw new Error(
      "UNet2DConditionModel config: text_time needs addition_time_embed_dim and projection_class_embeddings_input_dim",
    );
  return config;
}

export interface UNetInputs {
  /** Noisy latent, scaled as the sampler says, [B,4,H,W]. */
  sample: Value;
  /** [B], float32. */
  timestep: Value;
  /** Text encoders' hidden states, [B,T,D]. */
  encoderHiddenStates: Value;
  /** Pooled text embedding, [B,P]; with `timeIds` where the config has text_time. */
  textEmbeds?: Value;
  /** Original size, crop corner, target size, each (height, width): [B,6]. */
  timeIds?: Value;
}

/** What a block needs besides its input. */
interface Context {
  temb: Value; // [B,E]
  text: Value; // [B,T,D]
  config: UNetConfig;
}

function level<T>(setting: T | readonly T[], i: number): T {
  return Array.isArray(setting) ? (setting as readonly T[])[i] : (setting as T);
}

/** Two convolutions with the time embedding added between them (He et al. 2016, pre-activation). */
function resnetBlock(p: Scope, x: Value, out: number, { temb, config }: Context): Value {
  const norm = { groups: config.norm_num_groups, eps: config.norm_eps };
  let h = conv2d(p.at("conv1"), silu(groupNorm(p.at("norm1"), x, norm)), { out }); // [B,out,H,W]
  h = h.add(linear(p.at("time_emb_proj"), silu(temb), { out }).unsqueeze(2, 3)); // + [B,out,1,1]
  h = conv2d(p.at("conv2"), silu(groupNorm(p.at("norm2"), h, norm)), { out });
  return h.add(x.shape[1] === out ? x : conv2d(p.at("conv_shortcut"), x, { out, kernel: 1 }));
}

function attend(p: Scope, x: Value, context: Value, heads: number): Value {
  const out = x.shape[2] as number;
  const q = linear(p.at("to_q"), x, { out, bias: false });
  const k = linear(p.at("to_k"), context, { out, bias: false });
  const v = linear(p.at("to_v"), context, { out, bias: false });
  return linear(p.at("to_out").at(0), attention(q, k, v, { heads }), { out });
}

/**
 * Linear → value·gelu(gate) → Linear (Shazeer 2020, GEGLU). The weight is cut instead of its product: cutting
 * activations costs a pass over memory each way.
 */
function feedForward(p: Scope, x: Value): Value {
  const width = x.shape[2] as number;
  const half = 4 * width;
  const proj = p.at("net").at(0).at("proj");
  const weight = proj.param("weight", [2 * half, width], fanIn(width));
  const bias = proj.param("bias", [2 * half], fanIn(width));
  const [value, gate] = [0, half].map((from) =>
    project(x, weight.slice(0, from, from + half), bias.slice(0, from, from + half)),
  ); // [B,L,4C]
  return linear(p.at("net").at(2), value.mul(gelu(gate)), { out: width });
}

function transformerBlock(p: Scope, x: Value, text: Value, heads: number): Value {
  const self = layerNorm(p.at("norm1"), x);
  x = x.add(attend(p.at("attn1"), self, self, heads));
  x = x.add(attend(p.at("attn2"), layerNorm(p.at("norm2"), x), text, heads));
  return x.add(feedForward(p.at("ff"), layerNorm(p.at("norm3"), x)));
}

/** Transformer over the positions of a feature map. */
function transformer(p: Scope, x: Value, heads: number, depth: number, { text, config }: Context): Value {
  const [B, C, H, W] = x.shape as [Dim, number, Dim, Dim];
  const asLinear = config.use_linear_projection;
  let h = groupNorm(p.at("norm"), x, { groups: config.norm_num_groups, eps: 1e-6 });
  if (!asLinear) h = conv2d(p.at("proj_in"), h, { out: C, kernel: 1 });
  h = h.reshape([B, C, mulDim(H, W)]).transpose([0, 2, 1]); // [B,L,C]
  if (asLinear) h = linear(p.at("proj_in"), h, { out: C });
  for (let i = 0; i < depth; i++) h = transformerBlock(p.at("transformer_blocks").at(i), h, text, heads);
  if (asLinear) h = linear(p.at("proj_out"), h, { out: C });
  h = h.transpose([0, 2, 1]).reshape([B, C, H, W]);
  if (!asLinear) h = conv2d(p.at("proj_out"), h, { out: C, kernel: 1 });
  return h.add(x);
}

/** Heads and depth of the transformers of one level. */
function attentionAt(config: UNetConfig, i: number): { heads: number; depth: number | number[] } {
  return {
    heads: level(config.num_attention_heads ?? config.attention_head_dim, i),
    depth: level(config.transformer_layers_per_block as number | (number | number[])[], i) as
      | number
      | number[],
  };
}

function depthsOfUp(config: UNetConfig, i: number): number | number[] {
  const reversed = config.reverse_transformer_layers_per_block;
  if (reversed) return level(reversed as number | (number | number[])[], i) as number | number[];
  const forward = config.transformer_layers_per_block;
  return level(
    (Array.isArray(forward) ? [...forward].reverse() : forward) as number | (number | number[])[],
    i,
  ) as number | number[];
}

/** Time embedding plus the embedding of pooled text and sizes: [B,E]. */
function conditionEmbedding(p: Scope, config: UNetConfig, inputs: UNetInputs): Value {
  const width = config.block_out_channels[0];
  const out = 4 * width;
  const mlp = (at: Scope, x: Value) =>
    linear(at.at("linear_2"), silu(linear(at.at("linear_1"), x, { out })), { out });
  const sinusoids = { flip: config.flip_sin_to_cos, shift: config.freq_shift };
  const time = mlp(p.at("time_embedding"), timestepEmbedding(inputs.timestep, width, sinusoids));
  if (!config.addition_embed_type) return time;
  const { textEmbeds, timeIds } = inputs;
  if (!textEmbeds || !timeIds) throw new Error("unet: text_time conditioning needs textEmbeds and timeIds");
  const [B] = textEmbeds.shape;
  const ids = timestepEmbedding(timeIds, config.addition_time_embed_dim!, sinusoids).reshape([
    B,
    6 * config.addition_time_embed_dim!,
  ]);
  const joined = concat([textEmbeds, ids], 1); // [B,P+6·256]
  if (joined.shape[1] !== config.projection_class_embeddings_input_dim)
    throw new Error(
      `unet: pooled text and sizes are ${joined.shape[1]} wide, projection_class_embeddings_input_dim is ${config.projection_class_embeddings_input_dim}`,
    );
  return time.add(mlp(p.at("add_embedding"), joined));
}

export interface EncoderOutput {
  /** Middle feature map, [B,C,h,w]. */
  mid: Value;
  /** Every feature map on the way down, for the skips. */
  skips: Value[];
  /** What each down block ends with, before it halves its side. */
  levels: Value[];
  context: Context;
}

/** Down and middle blocks: the half that a discriminator shares (Lin et al. 2024, §3.3). */
export function unetEncoder(p: Scope, config: UNetConfig, inputs: UNetInputs): EncoderOutput {
  const channels = config.block_out_channels;
  const last = channels.length - 1;

  // embed
  const temb = conditionEmbedding(p, config, inputs);
  const context: Context = { temb, text: inputs.encoderHiddenStates, config };
  let h = conv2d(p.at("conv_in"), inputs.sample, { out: channels[0] });
  const skips = [h];
  const levels: Value[] = [];

  // down
  channels.forEach((out, i) => {
    const block = p.at("down_blocks").at(i);
    const { heads, depth } = attentionAt(config, i);
    for (let j = 0; j < level(config.layers_per_block, i); j++) {
      h = resnetBlock(block.at("resnets").at(j), h, out, context);
      if (config.down_block_types[i] === "CrossAttnDownBlock2D")
        h = transformer(block.at("attentions").at(j), h, heads, level(depth, j), context);
      skips.push(h);
    }
    levels.push(h);
    if (i < last) {
      h = conv2d(block.at("downsamplers").at(0).at("conv"), h, { out, stride: 2, padding: 1 });
      skips.push(h);
    }
  });

  // mid
  const mid = p.at("mid_block");
  const { heads, depth } = attentionAt(config, last);
  h = resnetBlock(mid.at("resnets").at(0), h, channels[last], context);
  h = transformer(mid.at("attentions").at(0), h, heads, level(depth, 0), context);
  h = resnetBlock(mid.at("resnets").at(1), h, channels[last], context);
  return { mid: h, skips, levels, context };
}

/** The network's prediction for a noisy latent: [B,4,H,W]. */
export function unet(p: Scope, config: UNetConfig, inputs: UNetInputs): Value {
  return located(p.path === "" ? { ...p, path: "unet" } : p, () => {
    const { mid, skips, context } = unetEncoder(p, config, inputs);
    const channels = config.block_out_channels;
    const last = channels.length - 1;
    let h = mid;

    // up
    channels.forEach((_, i) => {
      const at = last - i;
      const block = p.at("up_blocks").at(i);
      const { heads } = attentionAt(config, at);
      for (let j = 0; j <= level(config.layers_per_block, at); j++) {
        h = concat([h, skips.pop()!], 1);
        h = resnetBlock(block.at("resnets").at(j), h, channels[at], context);
        if (config.up_block_types[i] === "CrossAttnUpBlock2D")
          h = transformer(block.at("attentions").at(j), h, heads, level(depthsOfUp(config, i), j), context);
      }
      if (i < last) {
        const { shape } = skips[skips.length - 1];
        h = resizeNearest(h, [shape[2], shape[3]]); // the skip's size: odd ones do not double
        h = conv2d(block.at("upsamplers").at(0).at("conv"), h, { out: channels[at] });
      }
    });

    // out
    h = silu(groupNorm(p.at("conv_norm_out"), h, { groups: config.norm_num_groups, eps: config.norm_eps }));
    return conv2d(p.at("conv_out"), h, { out: config.out_channels });
  });
}
