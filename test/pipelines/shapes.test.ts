/** @file Configs told from shapes: those of SDXL base are its own, in both layouts. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { unetConfig, vaeConfig } from "../../src/models/index.ts";
import { below, PREFIXES } from "../../src/pipelines/checkpoint.ts";
import { unetParameters, vaeParameters } from "../../src/pipelines/parameters.ts";
import {
  clipConfigOf,
  type Shapes,
  tinyConfigOf,
  unetConfigOf,
  vaeConfigOf,
} from "../../src/pipelines/shapes.ts";
import { loadSafetensors } from "../../src/weights/index.ts";
import { goldenJson, goldenPath } from "../parity/golden.ts";
import { BIG_G, CLIP_L, checkpointKeys, SDXL } from "../weights/sdxl.ts";

const keys = checkpointKeys();

/** Shapes of one network, in one of the layouts. */
function shapes(network: keyof typeof keys, layout: "ours" | "theirs"): Shapes {
  const all = new Map(Object.entries(keys[network][layout]));
  return layout === "ours" ? all : below(all, PREFIXES[network]);
}

describe.each([
  ["ours", "diffusers"],
  ["theirs", "checkpoint"],
] as const)("SDXL base, names of %s", (layout, naming) => {
  test("UNet", () => {
    const { sample_size: _, ...expected } = SDXL;
    expect(unetConfigOf(shapes("unet", layout), naming, 1280)).toMatchObject(expected);
    expect(unetConfigOf(shapes("unet", layout), naming)).toMatchObject(expected);
  });

  test("VAE", () => {
    expect(vaeConfigOf(shapes("vae", layout), naming)).toEqual(vaeConfig({}));
  });

  test("text encoders", () => {
    expect(clipConfigOf(shapes("text_encoder_2", layout), naming, "gelu")).toEqual(BIG_G);
    expect(clipConfigOf(shapes("text_encoder", layout), "diffusers", "quick_gelu")).toEqual(CLIP_L);
  });
});

test("transformers of different depth on the way up, as in distilled SDXLs", () => {
  const config = unetConfig({
    ...SDXL,
    block_out_channels: [64, 128],
    down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types: ["CrossAttnUpBlock2D", "UpBlock2D"],
    attention_head_dim: [1, 2],
    transformer_layers_per_block: [1, [2, 3]],
    reverse_transformer_layers_per_block: [
      [3, 2, 1],
      [1, 1, 1],
    ],
    cross_attention_dim: 64,
  });
  const parameters = unetParameters(config);
  const found = new Map(Object.entries(parameters).map(([key, shape]) => [key, { shape }]));
  expect(unetParameters(unetConfigOf(found, "diffusers"))).toEqual(parameters);
});

test("a VAE without attention and quantisation convolutions", () => {
  const config = vaeConfig({
    block_out_channels: [32, 64, 64],
    layers_per_block: 1,
    mid_block_add_attention: false,
    use_quant_conv: false,
    use_post_quant_conv: false,
    latent_channels: 16,
    norm_num_groups: 8,
    scaling_factor: 0.5,
  });
  const found = new Map(Object.entries(vaeParameters(config)).map(([key, shape]) => [key, { shape }]));
  expect(vaeConfigOf(found, "diffusers", config)).toEqual(config);
  expect(vaeConfigOf(found, "diffusers").norm_num_groups).toBe(32);
});

test("a tiny VAE", async () => {
  const { tensors } = await loadSafetensors(goldenPath("tiny.safetensors"));
  const weights = Object.entries(tensors).map(([key, t]) => [key.replace(/^weight\./, ""), t] as const);
  const golden = (await goldenJson("tiny")) as Record<string, unknown>;
  expect(tinyConfigOf(new Map(weights))).toMatchObject({
    latent_channels: 4,
    num_decoder_blocks: golden.num_decoder_blocks,
    decoder_block_out_channels: golden.decoder_block_out_channels,
  });
});

describe("refused in one sentence", () => {
  test.each<[string, Shapes, RegExp]>([
    ["nothing", new Map(), /^there is no tensor .*, which tells how the network is built$|0 channels/],
    [
      "narrow levels",
      new Map(
        Object.entries(
          unetParameters(unetConfig({ ...SDXL, block_out_channels: [32, 64, 64], attention_head_dim: 2 })),
        ).map(([key, shape]) => [key, { shape }]),
      ),
      /^the UNet has 32 channels, which do not tell its number of attention heads$/,
    ],
  ])("%s", (_, found, message) => {
    expect(() => unetConfigOf(found, "diffusers")).toThrow(message);
  });

  test("a tiny VAE that ends early", () => {
    const found = new Map([
      ["decoder.layers.0.weight", { shape: [8, 4, 3, 3] }],
      ["decoder.layers.2.conv.0.weight", { shape: [8, 8, 3, 3] }],
    ]);
    expect(() => tinyConfigOf(found)).toThrow("there is no tensor decoder.layers.4.weight, which tells");
  });
});
