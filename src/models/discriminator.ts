/**
 * @file The discriminator of SDXL-Lightning (Lin et al. 2024, §3.3): a UNet's down and middle blocks look at one or
 * two noisy latents, a small head at what they saw. B batch, C width of a feature map, h w its side.
 */

import type { Value } from "../graph/index.ts";
import { conv2d, groupNorm, linear, type Scope } from "../nn/index.ts";
import { silu } from "../ops/index.ts";
import { type UNetConfig, type UNetInputs, unetEncoder } from "./unet.ts";

/**
 * Where heads look: at the middle block, as in the paper, or at every resolution on the way there too, as the
 * discriminators of distilled diffusion models since have done (Sauer et al. 2024, LADD).
 */
export type DiscriminatorHeads = "mid" | "all";

/** Side of the feature map that a head stops at. */
const LAST_SIDE = 2;

/** How often a head halves the map of a level, at the size the UNet was trained for. */
function headBlocks({ sample_size }: UNetConfig, level: number): number {
  const side = (sample_size ?? 128) / 2 ** level;
  return Math.max(1, Math.ceil(Math.log2(side / LAST_SIDE)));
}

/**
 * 4×4 convolutions of stride 2 with GroupNorm and SiLU, then one number. The paper leaves depth and widths open: here
 * they halve the map down to 2×2 at its own width, and the mean over positions is projected, so that every aspect
 * ratio fits. The first convolution sees the maps side by side: the sum of one for each, so that what is learned of the
 * first serves with and without the second.
 */
function head(p: Scope, [view, source]: readonly Value[], config: UNetConfig, level: number): Value {
  const options = { out: config.block_out_channels[level], kernel: 4, stride: 2, padding: 1 };
  let h = view;
  for (let i = 0; i < headBlocks(config, level); i++) {
    h = conv2d(p.at("convs").at(i), h, options);
    if (i === 0 && source) h = h.add(conv2d(p.at("source"), source, { ...options, bias: false }));
    h = silu(groupNorm(p.at("norms").at(i), h, { groups: config.norm_num_groups })); // [B,C,h/2,w/2]
  }
  return linear(p.at("out"), h.mean([2, 3]), { out: 1 }).squeeze(1);
}

/**
 * Logits [B] of D(x_{t−ns}, x_t, …) for two views, or of the relaxed D′(x_{t−ns}, …) for one: the views go through
 * the same encoder, their features side by side through the head; with several heads their numbers add up. Keys are
 * `encoder.` and the UNet's own, `head.`, and `heads.<level>.` for those before the middle block.
 */
export function discriminator(
  p: Scope,
  config: UNetConfig,
  views: readonly UNetInputs[],
  heads: DiscriminatorHeads = "mid",
): Value {
  const seen = views.map((view) => unetEncoder(p.at("encoder"), config, view));
  const last = config.block_out_channels.length - 1;
  const middle = seen.map(({ mid }) => mid); // [B,C,h,w] each
  let logit = head(p.at("head"), middle, config, last);
  for (let level = 0; heads === "all" && level < last; level++) {
    const maps = seen.map(({ levels }) => levels[level]);
    logit = logit.add(head(p.at("heads").at(level), maps, config, level));
  }
  return logit;
}
