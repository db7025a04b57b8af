/**
 * @file Names in a single-file checkpoint of SDXL, as its authors' code (generative-models) and ComfyUI have them,
 * beside those of diffusers and transformers. Both number the same blocks, one flat, one by level.
 */

import { type KeyRule, KeyTable } from "./rename.ts";

/** What the names of a UNet depend on; fields of diffusers' config. */
export interface UNetLayout {
  block_out_channels: readonly number[];
  layers_per_block: number | readonly number[];
  down_block_types: readonly string[];
  up_block_types: readonly string[];
}

/** What the names of a VAE depend on; fields of diffusers' config. */
export interface VaeLayout {
  block_out_channels: readonly number[];
  layers_per_block: number;
}

type Pairs = readonly (readonly [ours: string, theirs: string, layout?: KeyRule["layout"]])[];

function rulesOf(pairs: Pairs, ours = "", theirs = ""): KeyRule[] {
  return pairs.map(([a, b, layout]) => ({ ours: ours + a, theirs: theirs + b, layout }));
}

const UNET_ENDS: Pairs = [
  ["time_embedding.linear_1", "time_embed.0"],
  ["time_embedding.linear_2", "time_embed.2"],
  ["add_embedding.linear_1", "label_emb.0.0"],
  ["add_embedding.linear_2", "label_emb.0.2"],
  ["conv_in", "input_blocks.0.0"],
  ["mid_block.attentions.0", "middle_block.1"],
  ["conv_norm_out", "out.0"],
  ["conv_out", "out.2"],
];

const UNET_RESNET: Pairs = [
  ["norm1", "in_layers.0"],
  ["conv1", "in_layers.2"],
  ["time_emb_proj", "emb_layers.1"],
  ["norm2", "out_layers.0"],
  ["conv2", "out_layers.3"],
  ["conv_shortcut", "skip_connection"],
];

/** Below `model.diffusion_model.` */
export function unetTable(config: UNetLayout): KeyTable {
  const levels = config.block_out_channels.length;
  const layers = (i: number) => [config.layers_per_block].flat()[i] ?? [config.layers_per_block].flat()[0];
  const resnet = (ours: string, theirs: string) => rulesOf(UNET_RESNET, `${ours}.`, `${theirs}.`);
  const rules = rulesOf(UNET_ENDS);
  rules.push(...resnet("mid_block.resnets.0", "middle_block.0"));
  rules.push(...resnet("mid_block.resnets.1", "middle_block.2"));

  let n = 1;
  for (let i = 0; i < levels; i++) {
    const block = `down_blocks.${i}`;
    const attends = config.down_block_types[i].startsWith("CrossAttn");
    for (let j = 0; j < layers(i); j++, n++) {
      rules.push(...resnet(`${block}.resnets.${j}`, `input_blocks.${n}.0`));
      if (attends) rules.push({ ours: `${block}.attentions.${j}`, theirs: `input_blocks.${n}.1` });
    }
    if (i < levels - 1)
      rules.push({ ours: `${block}.downsamplers.0.conv`, theirs: `input_blocks.${n++}.0.op` });
  }

  n = 0;
  for (let i = 0; i < levels; i++) {
    const block = `up_blocks.${i}`;
    const attends = config.up_block_types[i].startsWith("CrossAttn");
    const last = layers(levels - 1 - i);
    for (let j = 0; j <= last; j++, n++) {
      rules.push(...resnet(`${block}.resnets.${j}`, `output_blocks.${n}.0`));
      if (attends) rules.push({ ours: `${block}.attentions.${j}`, theirs: `output_blocks.${n}.1` });
      if (j === last && i < levels - 1) {
        const theirs = `output_blocks.${n}.${attends ? 2 : 1}.conv`;
        rules.push({ ours: `${block}.upsamplers.0.conv`, theirs });
      }
    }
  }
  return new KeyTable(rules);
}

const VAE_ENDS: Pairs = [
  ["encoder.conv_in", "encoder.conv_in"],
  ["encoder.conv_norm_out", "encoder.norm_out"],
  ["encoder.conv_out", "encoder.conv_out"],
  ["decoder.conv_in", "decoder.conv_in"],
  ["decoder.conv_norm_out", "decoder.norm_out"],
  ["decoder.conv_out", "decoder.conv_out"],
  ["quant_conv", "quant_conv"],
  ["post_quant_conv", "post_quant_conv"],
];

const VAE_RESNET: Pairs = [
  ["norm1", "norm1"],
  ["conv1", "conv1"],
  ["norm2", "norm2"],
  ["conv2", "conv2"],
  ["conv_shortcut", "nin_shortcut"],
];

const VAE_ATTENTION: Pairs = [
  ["group_norm", "norm"],
  ["to_q", "q", "kernel"],
  ["to_k", "k", "kernel"],
  ["to_v", "v", "kernel"],
  ["to_out.0", "proj_out", "kernel"],
];

/** Below `first_stage_model.`; the decoder's levels are counted from the picture there, from the latents here. */
export function vaeTable({ block_out_channels, layers_per_block }: VaeLayout): KeyTable {
  const levels = block_out_channels.length;
  const resnet = (ours: string, theirs: string) => rulesOf(VAE_RESNET, `${ours}.`, `${theirs}.`);
  const rules = rulesOf(VAE_ENDS);
  for (const half of ["encoder", "decoder"]) {
    rules.push(...resnet(`${half}.mid_block.resnets.0`, `${half}.mid.block_1`));
    rules.push(...rulesOf(VAE_ATTENTION, `${half}.mid_block.attentions.0.`, `${half}.mid.attn_1.`));
    rules.push(...resnet(`${half}.mid_block.resnets.1`, `${half}.mid.block_2`));
  }
  for (let i = 0; i < levels; i++) {
    const [down, up] = [`encoder.down.${i}`, `decoder.up.${levels - 1 - i}`];
    for (let j = 0; j < layers_per_block; j++)
      rules.push(...resnet(`encoder.down_blocks.${i}.resnets.${j}`, `${down}.block.${j}`));
    for (let j = 0; j <= layers_per_block; j++)
      rules.push(...resnet(`decoder.up_blocks.${i}.resnets.${j}`, `${up}.block.${j}`));
    if (i === levels - 1) continue;
    rules.push({ ours: `encoder.down_blocks.${i}.downsamplers.0.conv`, theirs: `${down}.downsample.conv` });
    rules.push({ ours: `decoder.up_blocks.${i}.upsamplers.0.conv`, theirs: `${up}.upsample.conv` });
  }
  return new KeyTable(rules);
}

/** Below `conditioner.embedders.0.transformer.`: transformers' own names. */
export function clipTable(): KeyTable {
  return new KeyTable([{ ours: "text_model", theirs: "text_model" }]);
}

const OPEN_CLIP_ENDS: Pairs = [
  ["text_model.embeddings.token_embedding", "token_embedding"],
  ["text_model.embeddings.position_embedding.weight", "positional_embedding"],
  ["text_model.final_layer_norm", "ln_final"],
  ["text_projection.weight", "text_projection", "transposed"],
];

const OPEN_CLIP_LAYER: Pairs = [
  ["layer_norm1", "ln_1"],
  ["self_attn.out_proj", "attn.out_proj"],
  ["layer_norm2", "ln_2"],
  ["mlp.fc1", "mlp.c_fc"],
  ["mlp.fc2", "mlp.c_proj"],
];

/** Below `conditioner.embedders.1.model.`: those of OpenCLIP, with queries, keys and values in one matrix. */
export function openClipTable({ num_hidden_layers }: { num_hidden_layers: number }): KeyTable {
  const rules = rulesOf(OPEN_CLIP_ENDS);
  for (let i = 0; i < num_hidden_layers; i++) {
    const [ours, theirs] = [`text_model.encoder.layers.${i}.`, `transformer.resblocks.${i}.`];
    rules.push(...rulesOf(OPEN_CLIP_LAYER, ours, theirs));
    for (const kind of ["weight", "bias"]) {
      const parts = ["q", "k", "v"].map((p) => `${ours}self_attn.${p}_proj.${kind}`);
      rules.push({ ours: parts, theirs: `${theirs}attn.in_proj_${kind}` });
    }
  }
  return new KeyTable(rules);
}
