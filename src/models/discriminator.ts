/**
 * @file The discriminator of SDXL-Lightning (Lin et al. 2024, §3.3): a UNet's down and middle blocks look at one or
 * two noisy latents, a small head at what they saw. B batch, C width of the middle block, h w its side.
 */

import type { Value } from "../graph/index.ts";
import { conv2d, groupNorm, linear, type Scope } from "../nn/index.ts";
import { concat, silu } from "../ops/index.ts";
import { type UNetConfig, type UNetInputs, unetEncoder } from "./unet.ts";

/** Side of the feature map that the head stops at. */
const LAST_SIDE = 2;

/** How often the head halves the middle block's map, at the size the UNet was trained for. */
function headBlocks({ sample_size, block_out_channels }: UNetConfig): number {
  const side = (sample_size ?? 128) / 2 ** (block_out_channels.length - 1);
  return Math.max(1, Math.ceil(Math.log2(side / LAST_SIDE)));
}

/**
 * 4×4 convolutions of stride 2 with GroupNorm and SiLU, then one number. The paper leaves depth and widths open: here
 * they halve the map down to 2×2 at the middle block's width, and the mean over positions is projected, so that
 * every aspect ratio fits.
 */
function head(p: Scope, h: Value, config: UNetConfig): Value {
  const out = config.block_out_channels[config.block_out_channels.length - 1];
  for (let i = 0; i < headBlocks(config); i++) {
    h = conv2d(p.at("convs").at(i), h, { out, kernel: 4, stride: 2, padding: 1 });
    h = silu(groupNorm(p.at("norms").at(i), h, { groups: config.norm_num_groups })); // [B,C,h/2,w/2]
  }
  return linear(p.at("out"), h.mean([2, 3]), { out: 1 }).squeeze(1);
}

/**
 * Logits [B] of D(x_{t−ns}, x_t, …) for two views, or of the relaxed D′(x_{t−ns}, …) for one: the views go through
 * the same encoder, their features side by side through the head. Keys are `encoder.` and the UNet's own, and `head.`.
 */
export function discriminator(p: Scope, config: UNetConfig, views: readonly UNetInputs[]): Value {
  const features = views.map((view) => unetEncoder(p.at("encoder"), config, view).mid); // [B,C,h,w]
  return head(p.at("head"), features.length > 1 ? concat(features, 1) : features[0], config);
}
