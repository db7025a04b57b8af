/** @file Models with generated weights: the true shapes of SDXL, or its widths with few layers. */

import { join } from "node:path";
import { type Graph, input, parametersOf, symbol } from "../src/graph/index.ts";
import { bundledModel } from "../src/index.node.ts";
import {
  clipText,
  clipTextConfig,
  clipTextWithProjection,
  unet,
  unetConfig,
  vaeConfig,
  vaeDecode,
  vaeEncode,
} from "../src/models/index.ts";
import { rootScope } from "../src/nn/index.ts";
import { tokenizerFiles } from "../src/pipelines/folder.ts";
import { SDXL_SCHEDULER, saveJson, saveModelIndex, saveTokenizer } from "../src/pipelines/index.ts";
import { castTensor, floats, Generator, type HostTensor, sizeOf } from "../src/tensor/index.ts";
import { type TensorSource, tensorSource, writeSafetensors } from "../src/weights/index.ts";

const clip = (hidden: number, heads: number, layers: number, act: string) => ({
  hidden_size: hidden,
  intermediate_size: 4 * hidden,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  hidden_act: act,
  projection_dim: hidden,
});

/** UNet of two of the three levels, a layer each. */
const MID = {
  block_out_channels: [320, 640],
  down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D"],
  up_block_types: ["CrossAttnUpBlock2D", "UpBlock2D"],
  layers_per_block: 1,
  transformer_layers_per_block: [1, 1],
  attention_head_dim: [5, 10],
  sample_size: 32,
};

/** Parts of the configs that differ from SDXL's, which are the defaults. */
export const SIZES = {
  full: {
    text: [clip(768, 12, 12, "quick_gelu"), clip(1280, 20, 32, "gelu")],
    unet: {},
    vae: { block_out_channels: [128, 256, 512, 512], layers_per_block: 2 },
  },
  /** The first of the three levels with attention, for tests. */
  small: {
    text: [
      { ...clip(64, 2, 1, "quick_gelu"), vocab_size: 4096 },
      { ...clip(96, 2, 1, "gelu"), vocab_size: 4096 },
    ],
    unet: {
      block_out_channels: [320],
      down_block_types: ["CrossAttnDownBlock2D"],
      up_block_types: ["CrossAttnUpBlock2D"],
      layers_per_block: 1,
      transformer_layers_per_block: [1],
      attention_head_dim: [5],
      sample_size: 16,
    },
    vae: { block_out_channels: [32], layers_per_block: 1 },
  },
  /** Its widths with few layers, a twentieth of its weights. */
  mid: {
    text: [
      { ...clip(768, 12, 1, "quick_gelu"), vocab_size: 4096 },
      { ...clip(1280, 20, 1, "gelu"), vocab_size: 4096 },
    ],
    unet: MID,
    vae: { block_out_channels: [32, 64], layers_per_block: 1 },
  },
  /** That UNet, and text encoders of about as many weights: what taking turns in memory saves. */
  wordy: {
    text: [
      { ...clip(768, 12, 4, "quick_gelu"), vocab_size: 4096 },
      { ...clip(1280, 20, 6, "gelu"), vocab_size: 4096 },
    ],
    unet: MID,
    vae: { block_out_channels: [32, 64], layers_per_block: 1 },
  },
} as const;

const TABLE = 2 ** 20;

/** A function that fills tensors from a table of normal numbers, each from another place. */
function filler(seed: number): (shape: readonly number[], std: number) => HostTensor {
  const table = new Generator(seed).randn([TABLE]).data;
  let at = 0;
  return (shape, std) => {
    const out = floats(shape);
    for (let i = 0; i < out.data.length; i++) out.data[i] = std * table[(at + i + 7919 * (i >>> 20)) % TABLE];
    at = (at + out.data.length + 104729) % TABLE;
    return out;
  };
}

/** Writes a model folder in diffusers layout with seeded weights, by default in half precision. */
export async function generateModel(
  folder: string,
  size: keyof typeof SIZES,
  { seed = 0, dtype = "float16" }: { seed?: number; dtype?: "float16" | "float32" } = {},
): Promise<void> {
  const { text, unet: unetChanges, vae } = SIZES[size];
  const [first, second] = text;
  const B = symbol("B");
  const ids = input("ids", "int64", [B, 77]);
  const end = input("end", "int64", [B]);
  const fill = filler(seed);

  const save = async (part: string, file: string, config: object, graphs: readonly Graph[]) => {
    await saveJson(join(folder, part, "config.json"), config);
    const parameters = new Map(graphs.flatMap((g) => parametersOf(g)).map((p) => [p.name, p]));
    const tensors = new Map<string, TensorSource>();
    for (const { name, shape, init } of parameters.values()) {
      const std = shape.length > 1 ? sizeOf(shape.slice(1)) ** -0.5 : 0.02; // biases are small
      const drawn = () =>
        init.kind === "constant"
          ? floats(shape, new Float32Array(sizeOf(shape)).fill(init.value))
          : fill(shape, std);
      const bytes = () => tensorSource(castTensor(drawn(), dtype)).bytes();
      tensors.set(name, { dtype, shape, bytes });
    }
    await writeSafetensors(join(folder, part, file), tensors, { format: "pt" });
  };
  const of = (outputs: Graph["outputs"]): Graph => ({ outputs });

  const one = clipText(rootScope(), clipTextConfig(first), { ids, end });
  const two = clipTextWithProjection(rootScope(), clipTextConfig(second), { ids, end });
  await save("text_encoder", "model.safetensors", { architectures: ["CLIPTextModel"], ...first }, [
    of({ y: one.pooled }),
  ]);
  await save(
    "text_encoder_2",
    "model.safetensors",
    { architectures: ["CLIPTextModelWithProjection"], ...second },
    [of({ y: two.textEmbeds })],
  );

  const config = unetConfig({
    addition_embed_type: "text_time",
    addition_time_embed_dim: 256,
    projection_class_embeddings_input_dim: second.projection_dim + 6 * 256,
    cross_attention_dim: first.hidden_size + second.hidden_size,
    ...unetChanges,
  });
  const [H, W] = [symbol("H"), symbol("W")];
  const prediction = unet(rootScope(), config, {
    sample: input("sample", "float32", [B, 4, H, W]),
    timestep: input("timestep", "float32", [B]),
    encoderHiddenStates: input("hidden", "float32", [B, 77, config.cross_attention_dim]),
    textEmbeds: input("pooled", "float32", [B, second.projection_dim]),
    timeIds: input("time_ids", "float32", [B, 6]),
  });
  const diffusers = "diffusion_pytorch_model.safetensors";
  await save("unet", diffusers, { _class_name: "UNet2DConditionModel", ...config }, [of({ prediction })]);

  const levels = vae.block_out_channels.length;
  const autoencoder = vaeConfig({
    ...vae,
    down_block_types: new Array(levels).fill("DownEncoderBlock2D"),
    up_block_types: new Array(levels).fill("UpDecoderBlock2D"),
    scaling_factor: 0.13025,
  });
  await save("vae", diffusers, { _class_name: "AutoencoderKL", ...autoencoder }, [
    of({ latents: vaeEncode(rootScope(), autoencoder, input("pictures", "float32", [B, 3, H, W])) }),
    of({ pictures: vaeDecode(rootScope(), autoencoder, input("latents", "float32", [B, 4, H, W])) }),
  ]);

  for (const part of ["tokenizer", "tokenizer_2"])
    await saveTokenizer(join(folder, part), {
      ...(await tokenizerFiles(join(bundledModel(), part))),
      maxLength: 77,
    });
  await saveJson(join(folder, "scheduler", "scheduler_config.json"), SDXL_SCHEDULER);
  await saveModelIndex(folder, { steps: 4, guidance: 1 });
}
