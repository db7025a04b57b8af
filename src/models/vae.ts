/**
 * @file AutoencoderKL (Rombach et al. 2022), with the parameter names of diffusers.
 * B batch, C channels, H W pixels, h w latent.
 */

import { z } from "zod";
import { type Dim, mulDim, type Value } from "../graph/index.ts";
import { conv2d, groupNorm, linear, type Scope, upsampleConv2d } from "../nn/index.ts";
import { attention, silu } from "../ops/index.ts";
import { parseConfig } from "./config.ts";

const schema = z.object({
  in_channels: z.int().positive().default(3),
  out_channels: z.int().positive().default(3),
  latent_channels: z.int().positive().default(4),
  block_out_channels: z.array(z.int().positive()).min(1).default([128, 256, 512, 512]),
  down_block_types: z.array(z.literal("DownEncoderBlock2D")).optional(),
  up_block_types: z.array(z.literal("UpDecoderBlock2D")).optional(),
  layers_per_block: z.int().positive().default(2),
  norm_num_groups: z.int().positive().default(32),
  act_fn: z.enum(["silu", "swish"]).default("silu"),
  sample_size: z.int().positive().default(1024),
  scaling_factor: z.number().positive().default(0.13025),
  shift_factor: z.number().nullish(),
  latents_mean: z.array(z.number()).nullish(),
  latents_std: z.array(z.number()).nullish(),
  force_upcast: z.boolean().default(true),
  use_quant_conv: z.boolean().default(true),
  use_post_quant_conv: z.boolean().default(true),
  mid_block_add_attention: z.boolean().default(true),
});

export type VaeConfig = z.infer<typeof schema>;

/** Block types that the file leaves out are filled in: diffusers takes their number for that of the levels. */
export function vaeConfig(json: unknown): VaeConfig {
  const config = parseConfig("AutoencoderKL", schema, json);
  return {
    ...config,
    down_block_types: config.block_out_channels.map(() => "DownEncoderBlock2D"),
    up_block_types: config.block_out_channels.map(() => "UpDecoderBlock2D"),
  };
}

/** Pixels per latent position along one side. */
export function vaeScaleFactor(config: VaeConfig): number {
  return 2 ** (config.block_out_channels.length - 1);
}

function resnetBlock(p: Scope, x: Value, out: number, config: VaeConfig): Value {
  const norm = { groups: config.norm_num_groups, eps: 1e-6 };
  let h = conv2d(p.at("conv1"), silu(groupNorm(p.at("norm1"), x, norm)), { out });
  h = conv2d(p.at("conv2"), silu(groupNorm(p.at("norm2"), h, norm)), { out });
  return h.add(x.shape[1] === out ? x : conv2d(p.at("conv_shortcut"), x, { out, kernel: 1 }));
}

/** Self-attention with one head over all positions. */
function selfAttention(p: Scope, x: Value, config: VaeConfig): Value {
  const [B, C, H, W] = x.shape as [Dim, number, Dim, Dim];
  const tokens = groupNorm(p.at("group_norm"), x, { groups: config.norm_num_groups, eps: 1e-6 })
    .reshape([B, C, mulDim(H, W)])
    .transpose([0, 2, 1]); // [B,L,C]
  const [q, k, v] = ["to_q", "to_k", "to_v"].map((name) => linear(p.at(name), tokens, { out: C }));
  const out = linear(p.at("to_out").at(0), attention(q, k, v, { heads: 1 }), { out: C });
  return out.transpose([0, 2, 1]).reshape([B, C, H, W]).add(x);
}

function midBlock(p: Scope, x: Value, config: VaeConfig): Value {
  const out = x.shape[1] as number;
  let h = resnetBlock(p.at("resnets").at(0), x, out, config);
  if (config.mid_block_add_attention) h = selfAttention(p.at("attentions").at(0), h, config);
  return resnetBlock(p.at("resnets").at(1), h, out, config);
}

/** Mean and log-variance of the posterior: pictures [B,3,H,W] in [−1,1] → [B,2·4,h,w]. */
export function vaeEncode(scope: Scope, config: VaeConfig, pictures: Value): Value {
  const p = scope.at("encoder");
  const channels = config.block_out_channels;
  let h = conv2d(p.at("conv_in"), pictures, { out: channels[0] });
  channels.forEach((out, i) => {
    const block = p.at("down_blocks").at(i);
    for (let j = 0; j < config.layers_per_block; j++)
      h = resnetBlock(block.at("resnets").at(j), h, out, config);
    if (i < channels.length - 1)
      h = conv2d(block.at("downsamplers").at(0).at("conv"), h, { out, stride: 2, padding: [0, 0, 1, 1] });
  });
  h = midBlock(p.at("mid_block"), h, config);
  h = silu(groupNorm(p.at("conv_norm_out"), h, { groups: config.norm_num_groups, eps: 1e-6 }));
  const out = 2 * config.latent_channels;
  h = conv2d(p.at("conv_out"), h, { out });
  return config.use_quant_conv ? conv2d(scope.at("quant_conv"), h, { out, kernel: 1 }) : h;
}

/** Latents [B,4,h,w], not scaled → pictures [B,3,H,W] around [−1,1]. */
export function vaeDecode(scope: Scope, config: VaeConfig, latents: Value): Value {
  const p = scope.at("decoder");
  const channels = [...config.block_out_channels].reverse();
  const z = config.use_post_quant_conv
    ? conv2d(scope.at("post_quant_conv"), latents, { out: config.latent_channels, kernel: 1 })
    : latents;
  let h = conv2d(p.at("conv_in"), z, { out: channels[0] });
  h = midBlock(p.at("mid_block"), h, config);
  channels.forEach((out, i) => {
    const block = p.at("up_blocks").at(i);
    for (let j = 0; j <= config.layers_per_block; j++)
      h = resnetBlock(block.at("resnets").at(j), h, out, config);
    if (i < channels.length - 1) h = upsampleConv2d(block.at("upsamplers").at(0).at("conv"), h, { out });
  });
  h = silu(groupNorm(p.at("conv_norm_out"), h, { groups: config.norm_num_groups, eps: 1e-6 }));
  return conv2d(p.at("conv_out"), h, { out: config.out_channels });
}
