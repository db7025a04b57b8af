/** @file Names of single-file checkpoints: of the full SDXL, and of smaller networks of the same kind. */

import { describe, expect, test } from "vitest";
import { input, type ParameterInfo, parametersOf, symbol } from "../../src/graph/index.ts";
import { clipText, clipTextWithProjection, unetConfig, vaeConfig } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";
import { castTensor, floats, Generator, type HostTensor, toFloat32 } from "../../src/tensor/index.ts";
import {
  clipTable,
  type KeyTable,
  loadSafetensors,
  openClipTable,
  SafetensorsFile,
  saveSafetensors,
  tensorSource,
  unetTable,
  vaeTable,
  writeSafetensors,
} from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";
import { BIG_G, CLIP_L, SDXL, unetParameters, vaeParameters } from "./sdxl.ts";

const SMALL = unetConfig({
  ...SDXL,
  block_out_channels: [32, 64, 64, 64],
  down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
  up_block_types: ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
  layers_per_block: [1, 2, 1, 3],
  transformer_layers_per_block: 1,
  attention_head_dim: 2,
});
const B = symbol("B");
const ids = input("ids64", "int64", [B, 77]);
const end = input("end", "int64", [B]);

/** Every key of ours has one of theirs, which leads back; gives the number of theirs. */
function count(table: KeyTable, parameters: readonly ParameterInfo[]): number {
  const names = new Set<string>();
  for (const { name } of parameters) {
    const theirs = table.toTheirs(name);
    expect(theirs, name).toBeDefined();
    expect(table.toOurs(theirs!)!.keys, theirs).toContain(name);
    names.add(theirs!);
  }
  return names.size;
}

test("all 1680 tensors of SDXL's UNet have a name of their own", () => {
  const parameters = unetParameters(SDXL);
  expect(parameters.length).toBe(1680);
  expect(count(unetTable(SDXL), parameters)).toBe(1680);
});

test("other levels and layers count on", () => {
  const parameters = unetParameters(SMALL);
  expect(count(unetTable(SMALL), parameters)).toBe(parameters.length);
  const table = unetTable(SMALL);
  expect(table.toTheirs("down_blocks.3.resnets.2.conv1.weight")).toBe("input_blocks.10.0.in_layers.2.weight");
  expect(table.toTheirs("up_blocks.0.resnets.3.conv1.bias")).toBe("output_blocks.3.0.in_layers.2.bias");
  expect(table.toTheirs("up_blocks.0.upsamplers.0.conv.bias")).toBe("output_blocks.3.1.conv.bias");
});

test.each([
  ["time_embedding.linear_2.bias", "time_embed.2.bias"],
  ["add_embedding.linear_1.weight", "label_emb.0.0.weight"],
  ["conv_in.weight", "input_blocks.0.0.weight"],
  ["down_blocks.0.resnets.1.time_emb_proj.weight", "input_blocks.2.0.emb_layers.1.weight"],
  ["down_blocks.0.downsamplers.0.conv.bias", "input_blocks.3.0.op.bias"],
  ["down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"],
  [
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
  ],
  [
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight",
    "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight",
  ],
  ["mid_block.resnets.1.norm2.weight", "middle_block.2.out_layers.0.weight"],
  ["mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"],
  ["up_blocks.0.attentions.2.norm.bias", "output_blocks.2.1.norm.bias"],
  ["up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight"],
  ["up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"],
  ["up_blocks.2.resnets.2.conv2.weight", "output_blocks.8.0.out_layers.3.weight"],
  ["conv_norm_out.weight", "out.0.weight"],
  ["conv_out.bias", "out.2.bias"],
])("UNet: %s is %s", (ours, theirs) => {
  const table = unetTable(SDXL);
  expect(table.toTheirs(ours)).toBe(theirs);
  expect(table.toOurs(theirs)).toEqual({ keys: [ours], layout: undefined });
});

describe("VAE", () => {
  test("all tensors of SDXL's have a name of their own", () => {
    const parameters = vaeParameters(vaeConfig({}));
    expect(parameters.length).toBe(248);
    expect(count(vaeTable(vaeConfig({})), parameters)).toBe(248);
  });

  test("without attention in the middle", () => {
    const config = vaeConfig({
      block_out_channels: [32, 32, 64],
      layers_per_block: 1,
      mid_block_add_attention: false,
    });
    const parameters = vaeParameters(config);
    expect(count(vaeTable(config), parameters)).toBe(parameters.length);
  });

  test.each([
    ["decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"],
    ["decoder.up_blocks.2.resnets.0.conv_shortcut.bias", "decoder.up.1.block.0.nin_shortcut.bias"],
    ["decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"],
    ["encoder.down_blocks.2.downsamplers.0.conv.weight", "encoder.down.2.downsample.conv.weight"],
    ["encoder.mid_block.resnets.1.norm1.weight", "encoder.mid.block_2.norm1.weight"],
    ["decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"],
    ["encoder.mid_block.attentions.0.group_norm.bias", "encoder.mid.attn_1.norm.bias"],
    ["encoder.conv_norm_out.weight", "encoder.norm_out.weight"],
    ["post_quant_conv.weight", "post_quant_conv.weight"],
  ])("%s is %s", (ours, theirs) => {
    expect(vaeTable(vaeConfig({})).toTheirs(ours)).toBe(theirs);
    expect(vaeTable(vaeConfig({})).toOurs(theirs)?.keys).toEqual([ours]);
  });
});

describe("text encoders", () => {
  test("CLIP-L keeps transformers' names", () => {
    const parameters = parametersOf([clipText(rootScope(), CLIP_L, { ids, end }).pooled]);
    expect(parameters.length).toBe(196);
    expect(count(clipTable(), parameters)).toBe(196);
  });

  test("OpenCLIP bigG has queries, keys and values in one", () => {
    const parameters = parametersOf([clipTextWithProjection(rootScope(), BIG_G, { ids, end }).textEmbeds]);
    expect(parameters.length).toBe(517);
    expect(count(openClipTable(BIG_G), parameters)).toBe(517 - 32 * 4);
  });

  test.each([
    ["text_model.embeddings.position_embedding.weight", "positional_embedding"],
    ["text_model.embeddings.token_embedding.weight", "token_embedding.weight"],
    ["text_model.encoder.layers.9.mlp.fc2.bias", "transformer.resblocks.9.mlp.c_proj.bias"],
    [
      "text_model.encoder.layers.31.self_attn.out_proj.weight",
      "transformer.resblocks.31.attn.out_proj.weight",
    ],
    ["text_model.final_layer_norm.weight", "ln_final.weight"],
    ["text_projection.weight", "text_projection"],
  ])("%s is %s", (ours, theirs) => {
    expect(openClipTable(BIG_G).toTheirs(ours)).toBe(theirs);
    expect(openClipTable(BIG_G).toOurs(theirs)?.keys).toEqual([ours]);
  });
});

describe("tensors that lie otherwise", () => {
  const g = new Generator(2);
  const layer = "text_model.encoder.layers.0.self_attn";
  const text: Record<string, HostTensor> = { "text_projection.weight": g.randn([3, 4]) };
  for (const p of ["q", "k", "v"]) {
    text[`${layer}.${p}_proj.weight`] = g.randn([4, 4]);
    text[`${layer}.${p}_proj.bias`] = g.randn([4]);
  }

  const sources = (tensors: Record<string, HostTensor>) =>
    new Map(Object.entries(tensors).map(([key, t]) => [key, tensorSource(t)] as const));

  /** Written, and read back through the places in the file. */
  async function throughFile(table: KeyTable, tensors: Record<string, HostTensor>) {
    const named = table.write(sources(tensors), "p.");
    named.set("other.weight", tensorSource(floats([1])));
    await writeSafetensors(at("x.safetensors"), named);
    await using file = await SafetensorsFile.open(at("x.safetensors"));
    const { tensors: written } = await loadSafetensors(at("x.safetensors"));
    const back: Record<string, HostTensor> = {};
    for (const [key, t] of await table.read(file, "p.")) {
      if ("data" in t) back[key] = t;
      else {
        const { buffer } = await file.bytes(t.offset, t.bytes);
        back[key] = {
          dtype: t.dtype,
          shape: t.shape,
          data: t.dtype === "float32" ? new Float32Array(buffer) : new Uint16Array(buffer),
        };
      }
    }
    return { written, back };
  }

  test.each(["float32", "float16"] as const)("come back in %s", async (dtype) => {
    const cast = Object.fromEntries(Object.entries(text).map(([k, t]) => [k, castTensor(t, dtype)]));
    const { written, back } = await throughFile(openClipTable({ num_hidden_layers: 1 }), cast);
    expect(back).toEqual(cast);
    const fused = written["p.transformer.resblocks.0.attn.in_proj_weight"];
    expect(fused.shape).toEqual([12, 4]);
    expect(toFloat32(fused).data.subarray(16, 32)).toEqual(toFloat32(cast[`${layer}.k_proj.weight`]).data);
    const projection = toFloat32(written["p.text_projection"]);
    expect(projection.shape).toEqual([4, 3]);
    expect(projection.data[1]).toBe(toFloat32(cast["text_projection.weight"]).data[4]); // [0,1] is [1,0]
  });

  test("attention of the VAE is a 1×1 kernel", async () => {
    const key = "decoder.mid_block.attentions.0.to_q";
    const tensors = { [`${key}.weight`]: g.randn([4, 4]), [`${key}.bias`]: g.randn([4]) };
    const { written, back } = await throughFile(vaeTable(vaeConfig({})), tensors);
    expect(written["p.decoder.mid.attn_1.q.weight"].shape).toEqual([4, 4, 1, 1]);
    expect(back).toEqual(tensors);
  });

  test("names that the table lacks are refused, or stay", async () => {
    const table = openClipTable({ num_hidden_layers: 1 });
    const write = (tensors: Record<string, HostTensor>) => table.write(sources(tensors));
    expect(() => write({ "visual.proj": floats([1]) })).toThrow("visual.proj has no place in");
    const { [`${layer}.v_proj.bias`]: _, ...half } = text;
    expect(() => write(half)).toThrow(`${layer}.q_proj.bias has no place in`);
    await saveSafetensors(at("x.safetensors"), {
      "p.transformer.resblocks.1.ln_1.weight": floats([1]),
      "p.transformer.resblocks.0.attn.in_proj_bias": floats([4]), // not three rows of anything
      "p.transformer.resblocks.0.attn.in_proj_bias.x": floats([3]),
    });
    await using file = await SafetensorsFile.open(at("x.safetensors"));
    expect([...(await table.read(file, "p.")).keys()]).toEqual([...file.entries.keys()]);
  });
});
