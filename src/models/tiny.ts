/**
 * @file AutoencoderTiny: TAESD, a small autoencoder for the latents of a large one; diffusers parameter names.
 */

import { z } from "zod";
import type { Value } from "../graph/index.ts";
import { conv2d, type Scope, upsampleConv2d } from "../nn/index.ts";
import { relu } from "../ops/index.ts";
import { parseConfig } from "./config.ts";

const schema = z.object({
  in_channels: z.int().positive().default(3),
  out_channels: z.int().positive().default(3),
  latent_channels: z.int().positive().default(4),
  encoder_block_out_channels: z.array(z.int().positive()).default([64, 64, 64, 64]),
  decoder_block_out_channels: z.array(z.int().positive()).default([64, 64, 64, 64]),
  num_encoder_blocks: z.array(z.int().positive()).default([1, 3, 3, 3]),
  num_decoder_blocks: z.array(z.int().positive()).default([3, 3, 3, 1]),
  upsampling_scaling_factor: z.literal(2).default(2),
  scaling_factor: z.number().positive().default(1),
  act_fn: z.literal("relu").default("relu"),
});

export type TinyConfig = z.infer<typeof schema>;

export function tinyConfig(json: unknown): TinyConfig {
  return parseConfig("AutoencoderTiny", schema, json);
}

/** Three convolutions and a skip. */
function block(p: Scope, x: Value, out: number): Value {
  const c = p.at("conv");
  let h = relu(conv2d(c.at(0), x, { out }));
  h = relu(conv2d(c.at(2), h, { out }));
  h = conv2d(c.at(4), h, { out });
  return relu(h.add(x.shape[1] === out ? x : conv2d(p.at("skip"), x, { out, kernel: 1, bias: false })));
}

/** Pictures [B,3,H,W] in [−1,1] → latents [B,4,h,w]. */
export function tinyEncode(scope: Scope, config: TinyConfig, pictures: Value): Value {
  const p = scope.at("encoder").at("layers");
  let layer = 0;
  let h = pictures.add(1).div(2);
  config.num_encoder_blocks.forEach((count, i) => {
    const out = config.encoder_block_out_channels[i];
    h =
      i === 0
        ? conv2d(p.at(layer++), h, { out })
        : conv2d(p.at(layer++), h, { out, stride: 2, padding: 1, bias: false });
    for (let j = 0; j < count; j++) h = block(p.at(layer++), h, out);
  });
  return conv2d(p.at(layer), h, { out: config.latent_channels });
}

/** Latents [B,4,h,w] → pictures [B,3,H,W] around [−1,1]. */
export function tinyDecode(scope: Scope, config: TinyConfig, latents: Value): Value {
  const p = scope.at("decoder").at("layers");
  const channels = config.decoder_block_out_channels;
  let h = relu(conv2d(p.at(0), latents.div(3).tanh().mul(3), { out: channels[0] }));
  let layer = 2;
  config.num_decoder_blocks.forEach((count, i) => {
    const last = i === channels.length - 1;
    for (let j = 0; j < count; j++) h = block(p.at(layer++), h, channels[i]);
    if (last) h = conv2d(p.at(layer++), h, { out: config.out_channels });
    else {
      layer++; // the upsampling has no parameters
      h = upsampleConv2d(p.at(layer++), h, { out: channels[i], bias: false });
    }
  });
  return h.mul(2).sub(1);
}
