/** @file Keys and shapes of the weights of each network, under our names; no weights are needed for it. */

import { input, type ParameterInfo, parametersOf, type Value } from "../graph/index.ts";
import {
  type ClipTextConfig,
  clipText,
  clipTextWithProjection,
  type UNetConfig,
  unet,
  type VaeConfig,
  vaeDecode,
  vaeEncode,
} from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import type { Network } from "./base.ts";

export type ParameterShapes = Readonly<Record<string, readonly number[]>>;

function named(parameters: readonly ParameterInfo[]): ParameterShapes {
  return Object.fromEntries(parameters.map(({ name, shape }) => [name, shape]));
}

export function textParameters(config: ClipTextConfig, isProjected: boolean): ParameterShapes {
  const T = config.max_position_embeddings;
  const inputs = { ids: input("ids", "int64", [1, T]), end: input("end", "int64", [1]) };
  const out: Value = isProjected
    ? clipTextWithProjection(rootScope(), config, inputs).textEmbeds
    : clipText(rootScope(), config, inputs).pooled;
  return named(parametersOf([out]));
}

export function unetParameters(config: UNetConfig): ParameterShapes {
  const side = 2 ** (config.block_out_channels.length - 1);
  const { addition_time_embed_dim: ids, projection_class_embeddings_input_dim: added } = config;
  const pooled = (added ?? 0) - 6 * (ids ?? 0);
  const prediction = unet(rootScope(), config, {
    sample: input("sample", "float32", [1, config.in_channels, side, side]),
    timestep: input("timestep", "float32", [1]),
    encoderHiddenStates: input("hidden", "float32", [1, 1, config.cross_attention_dim]),
    textEmbeds: input("pooled", "float32", [1, pooled]),
    timeIds: input("time_ids", "float32", [1, 6]),
  });
  return named(parametersOf([prediction]));
}

/** Encoder and decoder. */
export function vaeParameters(config: VaeConfig): ParameterShapes {
  const side = 2 ** (config.block_out_channels.length - 1);
  const latents = input("latents", "float32", [1, config.latent_channels, 1, 1]);
  const pictures = input("pictures", "float32", [1, config.in_channels, side, side]);
  const halves = [vaeDecode(rootScope(), config, latents), vaeEncode(rootScope(), config, pictures)];
  return named(parametersOf(halves));
}

export function networkParameters(model: {
  text: readonly [ClipTextConfig, ClipTextConfig];
  unet: UNetConfig;
  vae: VaeConfig;
}): Record<Network, ParameterShapes> {
  return {
    text_encoder: textParameters(model.text[0], false),
    text_encoder_2: textParameters(model.text[1], true),
    unet: unetParameters(model.unet),
    vae: vaeParameters(model.vae),
  };
}
