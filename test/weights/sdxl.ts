/** @file The networks of SDXL at full size, as lists of parameters. */

import { graph, input, type ParameterInfo, parametersOf, symbol } from "../../src/graph/index.ts";
import { clipTextConfig, unet, unetConfig, vaeConfig, vaeDecode, vaeEncode } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";
import { NETWORKS } from "../../src/pipelines/base.ts";
import { PREFIXES, tables } from "../../src/pipelines/checkpoint.ts";
import { networkParameters } from "../../src/pipelines/parameters.ts";
import type { TensorSource } from "../../src/weights/index.ts";

const [B, H, W] = ["B", "H", "W"].map(symbol);

/** UNet2DConditionModel of SDXL base. */
export const SDXL = unetConfig({
  addition_embed_type: "text_time",
  addition_time_embed_dim: 256,
  projection_class_embeddings_input_dim: 2816,
});

/** CLIPTextModel of SDXL base, of CLIP ViT-L/14. */
export const CLIP_L = clipTextConfig({
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  projection_dim: 768,
});

/** CLIPTextModelWithProjection of SDXL base, of OpenCLIP ViT-bigG/14. */
export const BIG_G = clipTextConfig({
  hidden_size: 1280,
  intermediate_size: 5120,
  num_hidden_layers: 32,
  num_attention_heads: 20,
  hidden_act: "gelu",
  projection_dim: 1280,
});

/** All of SDXL base. */
export const MODEL = { text: [CLIP_L, BIG_G], unet: SDXL, vae: vaeConfig({}) } as const;

export function unetParameters(config: typeof SDXL): ParameterInfo[] {
  const prediction = unet(rootScope(), config, {
    sample: input("sample", "float32", [B, 4, H, W]),
    timestep: input("timestep", "float32", [B]),
    encoderHiddenStates: input("hidden", "float32", [B, 77, config.cross_attention_dim]),
    textEmbeds: input("pooled", "float32", [B, 1280]),
    timeIds: input("ids", "float32", [B, 6]),
  });
  return parametersOf(graph({ prediction }));
}

export function vaeParameters(config: ReturnType<typeof vaeConfig>): ParameterInfo[] {
  const latents = input("latents", "float32", [B, 4, H, W]);
  const pictures = input("pictures", "float32", [B, 3, H, W]);
  return parametersOf([vaeDecode(rootScope(), config, latents), vaeEncode(rootScope(), config, pictures)]);
}

type Keys = Record<string, { shape: readonly number[]; ours?: string[] }>;

/** Keys and shapes of SDXL base by network: ours, and those of its single file with ours that they hold. */
export function checkpointKeys(): Record<(typeof NETWORKS)[number], { ours: Keys; theirs: Keys }> {
  const named = tables(MODEL.unet, MODEL.vae, BIG_G);
  const parameters = networkParameters(MODEL);
  const entries = NETWORKS.map((network) => {
    const shapes = Object.entries(parameters[network]);
    const sources = shapes.map(([key, shape]): [string, TensorSource] => [
      key,
      { dtype: "float16", shape, bytes: () => new Uint8Array() },
    ]);
    const theirs: Keys = {};
    for (const [key, { shape }] of named[network].write(new Map(sources), PREFIXES[network])) {
      const { keys } = named[network].toOurs(key.slice(PREFIXES[network].length))!;
      theirs[key] = { shape, ours: [...keys] };
    }
    return [network, { ours: Object.fromEntries(shapes.map(([key, shape]) => [key, { shape }])), theirs }];
  });
  return Object.fromEntries(entries);
}
