/** @file A small SDXL that is built as SDXL is (heads of 64 channels, CLIP's vocabulary), with random weights. */

import "../../src/platform/node.ts";
import { type ClipTextConfig, clipTextConfig, unetConfig, vaeConfig } from "../../src/models/index.ts";
import { NETWORKS, type Network } from "../../src/pipelines/base.ts";
import { networkParameters, type ParameterShapes } from "../../src/pipelines/parameters.ts";
import { castTensor, floats, Generator, type HostTensor, sizeOf } from "../../src/tensor/index.ts";
import {
  clipTable,
  openClipTable,
  type TensorSource,
  tensorSource,
  unetTable,
  vaeTable,
  writeSafetensors,
} from "../../src/weights/index.ts";

const text = { num_hidden_layers: 2, vocab_size: 49408, max_position_embeddings: 77 };
const [first, second] = [
  { hidden_size: 64, intermediate_size: 128, num_attention_heads: 1, projection_dim: 64 },
  {
    hidden_size: 128,
    intermediate_size: 256,
    num_attention_heads: 2,
    projection_dim: 96,
    hidden_act: "gelu",
  },
].map((config) => clipTextConfig({ ...text, ...config }));

export const SMALL = {
  text: [first, second] as [ClipTextConfig, ClipTextConfig],
  unet: unetConfig({
    block_out_channels: [64, 128],
    down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types: ["CrossAttnUpBlock2D", "UpBlock2D"],
    layers_per_block: 1,
    transformer_layers_per_block: [1, 2],
    attention_head_dim: [1, 2],
    cross_attention_dim: 64 + 128,
    addition_embed_type: "text_time",
    addition_time_embed_dim: 8,
    projection_class_embeddings_input_dim: 96 + 6 * 8,
  }),
  vae: vaeConfig({ block_out_channels: [32, 64], layers_per_block: 1 }),
};

/** Weights under the names of diffusers and transformers. */
export type Networks = Record<Network, Map<string, HostTensor>>;

/** Values drawn for one tensor; longer ones repeat them. A prime, so that no two rows are alike. */
const MOST = 262139;

/** Norms near one, biases near zero, and matrices that keep the size of what they multiply, times `gain`. */
export function randomTensors(
  parameters: ParameterShapes,
  seed: number,
  gain = 1.2,
): Map<string, HostTensor> {
  const g = new Generator(seed);
  return new Map(
    Object.entries(parameters).map(([name, shape]) => {
      const fanIn = shape.slice(1).reduce((n, d) => n * d, 1);
      const scale = shape.length < 2 ? 0.1 : /embedding\.weight$/.test(name) ? 0.3 : gain / Math.sqrt(fanIn);
      const offset = shape.length < 2 && /norm\w*\.weight$/.test(name) ? 1 : 0;
      const size = sizeOf(shape);
      const { data: values } = g.randn([Math.min(size, MOST)]);
      const data = Float32Array.from({ length: size }, (_, i) => values[i % MOST] * scale + offset);
      return [name, floats(shape, data)];
    }),
  );
}

export function smallNetworks(): Networks {
  const parameters = networkParameters(SMALL);
  return Object.fromEntries(NETWORKS.map((n, i) => [n, randomTensors(parameters[n], i + 1)])) as Networks;
}

const CHECKPOINT = {
  unet: ["model.diffusion_model.", unetTable(SMALL.unet)],
  text_encoder: ["conditioner.embedders.0.transformer.", clipTable()],
  text_encoder_2: ["conditioner.embedders.1.model.", openClipTable(SMALL.text[1])],
  vae: ["first_stage_model.", vaeTable(SMALL.vae)],
} as const;

export function sourcesOf(tensors: ReadonlyMap<string, HostTensor>): Map<string, TensorSource> {
  return new Map([...tensors].map(([name, t]) => [name, tensorSource(t)]));
}

/** Tensors under the names of checkpoints, as files of other programs have them. */
export function checkpointTensors(networks: Partial<Networks>): Map<string, TensorSource> {
  const out = new Map<string, TensorSource>();
  for (const [network, tensors] of Object.entries(networks)) {
    const [prefix, table] = CHECKPOINT[network as Network];
    for (const [name, t] of table.write(sourcesOf(tensors), prefix)) out.set(name, t);
  }
  return out;
}

/** A checkpoint as others save it: no configs, and some tensors that nothing needs. */
export async function writeSmall(path: string, networks = smallNetworks()): Promise<void> {
  const tensors = checkpointTensors(networks);
  const one = tensorSource(floats([], [Math.log(100)]));
  tensors.set("conditioner.embedders.1.model.logit_scale", one);
  tensors.set("denoiser.sigmas", tensorSource(floats([4])));
  const positions = { dtype: "int64" as const, shape: [1, 77], data: new BigInt64Array(77) };
  tensors.set(
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    tensorSource(positions),
  );
  await writeSafetensors(path, tensors, { format: "pt" });
}

export function inHalf(tensors: ReadonlyMap<string, HostTensor>): Map<string, HostTensor> {
  return new Map([...tensors].map(([name, t]) => [name, castTensor(t, "float16")]));
}
