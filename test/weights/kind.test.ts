/** @file What files are, by keys and shapes. */

import { describe, expect, test } from "vitest";
import { type WeightContent, weightContent } from "../../src/weights/index.ts";

type Shapes = Record<string, readonly number[]>;

function content(shapes: Shapes): WeightContent {
  return weightContent(new Map(Object.entries(shapes).map(([key, shape]) => [key, { shape }])));
}

/** Keys that tell of a UNet with diffusers' names. */
const unet = (input: number, text: number, more: Shapes = {}): Shapes => ({
  "conv_in.weight": [320, input, 3, 3],
  "conv_out.weight": [4, 320, 3, 3],
  "mid_block.attentions.0.proj_in.weight": [1280, 1280],
  "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": [1280, text],
  ...more,
});

/** The same with the names of checkpoints. */
const ldm = (input: number, text: number, more: Shapes = {}, width = 320): Shapes => ({
  "model.diffusion_model.input_blocks.0.0.weight": [width, input, 3, 3],
  "model.diffusion_model.out.2.weight": [4, width, 3, 3],
  "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": [1280, text],
  ...more,
});

const sized = { "model.diffusion_model.label_emb.0.0.weight": [1280, 2816] };
const added = { "add_embedding.linear_1.weight": [1280, 2816] };
const xl = { ...sized, "conditioner.embedders.1.model.ln_final.weight": [1280] };
const sd = { "cond_stage_model.transformer.text_model.final_layer_norm.weight": [768] };
const vae = { "first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3] };

describe("networks", () => {
  test.each<[string, Shapes, Partial<WeightContent>]>([
    ["SDXL", ldm(4, 2048, xl), { kind: "checkpoint", family: "SDXL" }],
    ["SDXL's UNet and VAE", ldm(4, 2048, { ...sized, ...vae }), { kind: "checkpoint", family: "SDXL" }],
    ["SDXL for inpainting", ldm(9, 2048, xl), { kind: "checkpoint", family: "SDXL inpainting" }],
    [
      "the refiner",
      ldm(4, 1280, { "model.diffusion_model.label_emb.0.0.weight": [1536, 2560], ...vae }, 384),
      { kind: "checkpoint", family: "the SDXL refiner" },
    ],
    ["SD 1.5", ldm(4, 768, sd), { kind: "checkpoint", family: "SD 1.x" }],
    ["SD 1.5 for inpainting", ldm(9, 768, sd), { kind: "checkpoint", family: "SD 1.x inpainting" }],
    ["SD 2", ldm(4, 1024, { "cond_stage_model.model.ln_final.weight": [1024] }), { family: "SD 2.x" }],
    ["InstructPix2Pix", ldm(8, 768, sd), { family: "SD 1.x for edits by instruction" }],
    ["Playground", ldm(4, 2048, { ...xl, edm_mean: [1, 4, 1, 1] }), { family: "Playground v2.5" }],
    ["a bare UNet, checkpoint names", ldm(4, 2048, sized), { kind: "unet", family: "SDXL" }],
    [
      "a bare UNet without the prefix",
      Object.fromEntries(
        Object.entries(ldm(4, 2048, sized)).map(([key, shape]) => [
          key.slice("model.diffusion_model.".length),
          shape,
        ]),
      ),
      { kind: "unet", text: "a UNet with the names of checkpoints", family: "SDXL" },
    ],
    ["a bare UNet, diffusers' names", unet(4, 2048, added), { kind: "unet", family: "SDXL" }],
    ["a small one of the same kind", unet(4, 96, added), { kind: "unet", family: "SDXL" }],
    ["SD 1.5's UNet", unet(4, 768), { kind: "unet", family: "SD 1.x" }],
    ["inpainting, diffusers' names", unet(9, 2048, added), { kind: "unet", family: "SDXL inpainting" }],
    ["Kolors", unet(4, 2048, { ...added, "encoder_hid_proj.weight": [2048, 4096] }), { family: "Kolors" }],
    [
      "Flux with ComfyUI's names",
      { "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": [9216, 3072], ...vae },
      { kind: "checkpoint", family: "Flux" },
    ],
    ["Flux alone", { "double_blocks.0.img_attn.qkv.weight": [1] }, { kind: "transformer", family: "Flux" }],
    ["Flux of diffusers", { "single_transformer_blocks.0.norm.linear.weight": [1] }, { family: "Flux" }],
    [
      "SD 3",
      { "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": [1], ...vae },
      { kind: "checkpoint", family: "SD 3" },
    ],
    ["SD 3 of diffusers", { "transformer_blocks.0.attn.add_q_proj.weight": [1] }, { family: "SD 3" }],
  ])("%s", (_, shapes, expected) => {
    expect(content(shapes)).toMatchObject(expected);
  });
});

describe("other files", () => {
  test.each<[string, Shapes, Partial<WeightContent>]>([
    ["VAE, diffusers", { "decoder.mid_block.resnets.0.conv1.weight": [1] }, { kind: "vae" }],
    ["VAE, checkpoint names", { "decoder.mid.block_1.norm1.weight": [1] }, { kind: "vae" }],
    ["VAE, with prefix", vae, { kind: "vae" }],
    ["TAESD, diffusers", { "encoder.layers.0.weight": [64, 3, 3, 3] }, { kind: "tiny-vae" }],
    ["TAESD, its own", { "encoder.0.weight": [1], "decoder.1.weight": [1] }, { kind: "tiny-vae" }],
    ["TAESD, ComfyUI", { "taesd_decoder.1.weight": [1] }, { kind: "tiny-vae" }],
    ["TAESD, a half", { "1.weight": [1], "3.conv.0.weight": [1] }, { kind: "tiny-vae" }],
    [
      "ControlNet",
      unet(4, 2048, { ...added, "controlnet_cond_embedding.conv_in.weight": [1] }),
      { kind: "controlnet" },
    ],
    ["ControlNet, its own", { "control_model.input_blocks.0.0.weight": [1] }, { kind: "controlnet" }],
    ["Control-LoRA", { lora_controlnet: [0], "input_blocks.0.0.up": [1] }, { kind: "controlnet" }],
    ["IP-Adapter", { "ip_adapter.1.to_k_ip.weight": [1] }, { kind: "adapter" }],
    ["T5", { "encoder.block.0.layer.0.SelfAttention.q.weight": [1] }, { kind: "text-encoder" }],
    ["OpenCLIP", { "transformer.resblocks.0.ln_1.weight": [1] }, { kind: "text-encoder" }],
    ["textual inversion", { clip_g: [4, 1280], clip_l: [4, 768] }, { kind: "embedding" }],
    ["nothing", {}, { kind: "unknown", text: "nothing that is known" }],
  ])("%s", (_, shapes, expected) => {
    expect(content(shapes)).toMatchObject(expected);
    expect(content(shapes).family).toBeUndefined();
  });
});

describe("LoRAs", () => {
  const block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
  test.each<[string, Shapes, string | undefined]>([
    ["kohya, SDXL", { [`${block}.lora_down.weight`]: [8, 2048] }, "SDXL"],
    ["kohya, SD 1.5", { [`${block}.lora_down.weight`]: [8, 768] }, "SD 1.x"],
    ["PEFT, SDXL", { "unet.down_blocks.1.attentions.0.attn2.to_k.lora_A.weight": [8, 2048] }, "SDXL"],
    ["of a small network", { [`${block}.lora_down.weight`]: [8, 96] }, undefined],
    ["Flux", { "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [8, 3072] }, "Flux"],
    ["SD 3", { "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": [8, 1536] }, "SD 3"],
    ["LoHa", { "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": [8, 8] }, undefined],
    ["LoKr", { "lora_unet_mid_block_attentions_0_proj_in.lokr_w1": [8, 8] }, undefined],
    ["differences", { "lora_unet_conv_in.diff": [8, 8, 3, 3] }, undefined],
  ])("%s", (_, shapes, family) => {
    expect(content(shapes)).toMatchObject({ kind: "lora", text: "a LoRA" });
    expect(content(shapes).family).toBe(family);
  });
});
