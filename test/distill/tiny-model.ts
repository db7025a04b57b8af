/** @file A model folder and pictures that a distillation in a test gets through in seconds. */

import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { graph, input, parametersOf } from "../../src/graph/index.ts";
import { type UNetConfig, unet, unetConfig } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";
import { saveComponent } from "../../src/pipelines/index.ts";
import { Generator } from "../../src/tensor/index.ts";
import { initialValues } from "../../src/train/optimizer.ts";

const TINY_SDXL = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));

/** A UNet of two levels, with every kind of block. */
export function tinyUNet(fields: object): UNetConfig {
  return unetConfig({
    block_out_channels: [4, 8],
    down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types: ["CrossAttnUpBlock2D", "UpBlock2D"],
    layers_per_block: 1,
    transformer_layers_per_block: 1,
    attention_head_dim: 2,
    norm_num_groups: 2,
    addition_embed_type: "text_time",
    ...fields,
  });
}

/** Of the widths that the tiny model's text encoders have. */
const config = tinyUNet({
  sample_size: 16,
  cross_attention_dim: 36,
  addition_time_embed_dim: 8,
  projection_class_embeddings_input_dim: 60,
});

/** The tiny model of the goldens with a smaller UNet, in a folder of its own. */
export async function tinyModel(folder: string): Promise<string> {
  cpSync(TINY_SDXL, folder, { recursive: true });
  const prediction = unet(rootScope(), config, {
    sample: input("sample", "float32", [1, 4, 16, 16]),
    timestep: input("timestep", "float32", [1]),
    encoderHiddenStates: input("hidden", "float32", [1, 2, 36]),
    textEmbeds: input("pooled", "float32", [1, 12]),
    timeIds: input("time_ids", "float32", [1, 6]),
  });
  const random = new Generator(1);
  const weights = parametersOf(graph({ prediction })).map((p) => {
    return [p.name, initialValues(p.shape, p.init, () => random.random())] as const;
  });
  await saveComponent(join(folder, "unet"), "UNet2DConditionModel", config, Object.fromEntries(weights));
  return folder;
}

/** Six captioned pictures of one colour each. */
export async function tinyPictures(folder: string): Promise<string> {
  mkdirSync(folder, { recursive: true });
  for (let i = 0; i < 6; i++) {
    const background = { r: 40 * i, g: 255 - 40 * i, b: 90 };
    const png = await sharp({ create: { width: 64, height: 64, channels: 3, background } })
      .png()
      .toBuffer();
    writeFileSync(join(folder, `${i}.png`), png);
    writeFileSync(join(folder, `${i}.txt`), ["a red bird", "the fish", "a blue boat"][i % 3]);
  }
  return folder;
}
