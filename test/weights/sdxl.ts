/** @file The networks of SDXL at full size, as lists of parameters. */

import { graph, input, type ParameterInfo, parametersOf, symbol } from "../../src/graph/index.ts";
import { unet, unetConfig, type vaeConfig, vaeDecode, vaeEncode } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";

const [B, H, W] = ["B", "H", "W"].map(symbol);

/** UNet2DConditionModel of SDXL base. */
export const SDXL = unetConfig({
  addition_embed_type: "text_time",
  addition_time_embed_dim: 256,
  projection_class_embeddings_input_dim: 2816,
});

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
