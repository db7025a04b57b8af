/** @file The teacher's training: noise prediction (Ho et al. 2020) with the conditioning of SDXL. */

import { input, type Value } from "../graph/index.ts";
import {
  type ClipTextConfig,
  clipText,
  clipTextWithProjection,
  type UNetConfig,
  unet,
} from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { concat } from "../ops/index.ts";

export interface TextConfigs {
  textEncoder: ClipTextConfig;
  textEncoder2: ClipTextConfig;
}

/**
 * Both text encoders as SDXL uses them: last but one hidden states side by side [B,T,D₁+D₂], and the pooled
 * embedding of the second [B,P]. Keys are prefixed with text_encoder and text_encoder_2.
 */
export function encodePrompt(
  { textEncoder, textEncoder2 }: TextConfigs,
  { ids, ids2, end }: { ids: Value; ids2: Value; end: Value },
): { hidden: Value; pooled: Value } {
  const root = rootScope();
  const first = clipText(root.at("text_encoder"), textEncoder, { ids, end }).hiddenStates;
  const second = clipTextWithProjection(root.at("text_encoder_2"), textEncoder2, { ids: ids2, end });
  const hidden = concat([first[first.length - 2], second.hiddenStates[second.hiddenStates.length - 2]], 2);
  return { hidden, pooled: second.textEmbeds };
}

/** Sizes of a micro-batch. */
export interface UNetBatch {
  batch: number;
  /** Of the latents. */
  height: number;
  width: number;
  /** Of a prompt. */
  tokens: number;
  /** Width of the pooled embedding. */
  pooled: number;
}

/** What a UNet is told of a prompt: `hidden` [B,T,D] and `pooled` [B,P]. */
export type Prompt = Record<"hidden" | "pooled", Value>;

/** Prompts that were encoded before: inputs `hidden` and `pooled` (zeros drop the prompt, as SDXL's empty one). */
export function encodedPrompt(config: UNetConfig, { batch, tokens, pooled }: UNetBatch): Prompt {
  return {
    hidden: input("hidden", "float32", [batch, tokens, config.cross_attention_dim]),
    pooled: input("pooled", "float32", [batch, pooled]),
  };
}

/**
 * Prompts through encoders that are trained with the UNet, as Rombach et al. 2022 trained theirs. Inputs `ids`,
 * `ids_2` int64 [B,T] and `end` int64 [B] are tokens; `keep` [B] is 0 where the prompt is dropped.
 */
export function trainedPrompt(configs: TextConfigs, { batch, tokens }: UNetBatch): Prompt {
  const ids = (name: string) => input(name, "int64", [batch, tokens]);
  const end = input("end", "int64", [batch]);
  const { hidden, pooled } = encodePrompt(configs, { ids: ids("ids"), ids2: ids("ids_2"), end });
  const keep = input("keep", "float32", [batch]);
  return { hidden: hidden.mul(keep.reshape([batch, 1, 1])), pooled: pooled.mul(keep.reshape([batch, 1])) };
}

/**
 * Inputs besides those of the prompt: `sample` (noisy latents) and `target` [B,4,h,w], `timestep` [B], `time_ids`
 * [B,6], `weight` [B] of each error.
 */
export function unetLoss(
  config: UNetConfig,
  size: UNetBatch,
  { hidden, pooled }: Prompt = encodedPrompt(config, size),
): { loss: Value; metrics: Record<string, Value> } {
  const { batch, height, width } = size;
  const shape = [batch, config.in_channels, height, width];
  const prediction = unet(rootScope(), config, {
    sample: input("sample", "float32", shape),
    timestep: input("timestep", "float32", [batch]),
    encoderHiddenStates: hidden,
    textEmbeds: pooled,
    timeIds: input("time_ids", "float32", [batch, 6]),
  });
  const error = prediction
    .sub(input("target", "float32", shape))
    .pow(2)
    .mean([1, 2, 3]);
  return { loss: error.mul(input("weight", "float32", [batch])).mean(), metrics: { mse: error.mean() } };
}

/** Which error of the clean estimate a loss weighs evenly; see `noiseErrorWeight`. */
export type SnrWeighting = "snr" | "snr+1";

/**
 * Weight of the squared error of predicted noise at a signal-to-noise ratio. An error of the noise is one of the
 * clean estimate times SNR, so dividing by SNR gives the clean estimate any weight: min(SNR, γ) (Hang et al. 2023),
 * which all but ignores the noisiest steps, where a picture's layout is decided, or min(SNR, γ) + 1 (Salimans & Ho
 * 2022, §4), the weight that predicting velocity has.
 * @param gamma γ; 0 for no bound.
 */
export function noiseErrorWeight(snr: number, gamma: number, weighting: SnrWeighting): number {
  const bounded = gamma > 0 ? Math.min(snr, gamma) : snr;
  return (weighting === "snr+1" ? bounded + 1 : bounded) / snr;
}

/** Which timesteps are drawn more often, with the fields of diffusers' SDXL training script. */
export interface TimestepBias {
  strategy: "none" | "earlier" | "later";
  multiplier: number;
  portion: number;
}

/**
 * The place in [0, 1) of a timestep, from 0 the cleanest, for an even number `u` in [0, 1): the inverse of a
 * distribution that is even within the biased portion and within the rest.
 */
export function biasedPlace(u: number, { strategy, multiplier, portion }: TimestepBias): number {
  if (strategy === "later") return 1 - biasedPlace(1 - u, { strategy: "earlier", multiplier, portion });
  if (strategy === "none") return u;
  const total = portion * multiplier + 1 - portion;
  const share = (portion * multiplier) / total;
  return u < share ? (u * total) / multiplier : portion + (u - share) * total;
}
