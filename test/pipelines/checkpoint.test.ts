/** @file Whole models in one file: the same pictures, and what is refused. */

import { readFileSync, statSync, truncateSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { bundledModel, SDXL, samplingMetadata, saveCheckpoint } from "../../src/pipelines/index.ts";
import { floats } from "../../src/tensor/index.ts";
import { loadSafetensors, SafetensorsFile, saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { changed, picture, randomLora, type Tensors, TINY, unetTensors } from "./tiny.ts";

const few = { steps: 2, spacing: "trailing", guidance: 1, predictionType: "epsilon" } as const;
let own: Tensors;
beforeAll(async () => {
  own = await unetTensors();
});

test("a folder as one file makes the same pictures, with guidance and a negative prompt too", async () => {
  await saveCheckpoint(at("c.safetensors"), TINY);
  const options = { steps: 2, guidance: 4, negativePrompt: "blue light!", seed: 3 };
  expect(await picture({}, options, at("c.safetensors"))).toEqual(await picture({}, options));
  await using sdxl = await SDXL.load(at("c.safetensors"));
  expect(sdxl.info).toMatchObject({
    distilled: undefined,
    defaults: { steps: 30, guidance: 5, schedule: "leading" },
  });
});

test("the bundled model's, in half precision as it is", async () => {
  await saveCheckpoint(at("c.safetensors"), bundledModel(), undefined, { dtype: "float16" });
  const options = { steps: 2, guidance: 4 };
  const model = bundledModel();
  expect(await picture({}, options, at("c.safetensors"))).toEqual(
    await picture({ steps: 25 }, options, model),
  );
});

test("with another UNet and its settings", async () => {
  const unet = changed(own, 3);
  await saveCheckpoint(at("few.safetensors"), TINY, unet, { settings: few });
  await saveSafetensors(at("unet.safetensors"), unet, samplingMetadata(few));
  const expected = await picture({ unet: at("unet.safetensors") }, {});
  expect(await picture({}, {}, at("few.safetensors"))).toEqual(expected);
  await using sdxl = await SDXL.load(at("few.safetensors"));
  expect(sdxl.info).toMatchObject({
    distilled: 2,
    defaults: { steps: 2, guidance: 1, schedule: "trailing" },
  });
  const [made] = await sdxl.textToImage("apple");
  expect(made.settings.model).toBe("few");
  // Another UNet instead: the file's own settings are not its.
  await saveSafetensors(at("own.safetensors"), own);
  await using other = await SDXL.load(at("few.safetensors"), { unet: at("own.safetensors") });
  expect(other.info.distilled).toBeUndefined();
  // A LoRA on it, and its UNet on a folder.
  await saveLora(at("l.safetensors"), randomLora(own));
  const loras = { [at("l.safetensors")]: 0.5 };
  const adapted = await picture({ unet: at("unet.safetensors"), loras }, {});
  expect(await picture({ loras }, {}, at("few.safetensors"))).toEqual(adapted);
  expect(await picture({ unet: at("few.safetensors") }, {})).toEqual(expected);
});

describe("refused in one sentence", () => {
  type Metadata = Record<string, string>;
  async function spoiled(
    change: (tensors: Tensors, metadata: Metadata, config: Record<string, Record<string, unknown>>) => void,
  ) {
    await saveCheckpoint(at("c.safetensors"), TINY);
    const { tensors, metadata } = await loadSafetensors(at("c.safetensors"));
    const copy = { ...metadata };
    const config = JSON.parse(copy["fewstep.config"]);
    change(tensors, copy, config);
    if (copy["fewstep.config"] === metadata["fewstep.config"])
      copy["fewstep.config"] = JSON.stringify(config);
    await saveSafetensors(at("c.safetensors"), tensors, copy);
  }

  test.each<[string, Parameters<typeof spoiled>[0], RegExp]>([
    [
      "a UNet config that is none",
      (_, __, c) => Object.assign(c, { unet: { in_channels: "four" } }),
      /c.safetensors: UNet2DConditionModel config: in_channels is "four"/,
    ],
    [
      "no configs",
      (_, m) => delete m["fewstep.config"],
      /c.safetensors does not say how its networks are built \(no fewstep.config in its metadata\), and is no plain SDXL: a text encoder is 20 wide, [^;]+; give a model folder of the same family as the model, and this file as its UNet$/,
    ],
    [
      "configs that are no JSON",
      (_, m) => Object.assign(m, { "fewstep.config": "{" }),
      /c.safetensors: fewstep.config is not valid JSON$/,
    ],
    [
      "configs that are a list",
      (_, m) => Object.assign(m, { "fewstep.config": "[]" }),
      /c.safetensors: fewstep.config: .*expected object/,
    ],
    ["no UNet config", (_, __, c) => delete c.unet, /c.safetensors: fewstep.config at "unet": /],
    [
      "an unknown activation",
      (_, __, c) => Object.assign(c.text_encoder, { hidden_act: "relu" }),
      /c.safetensors: CLIPTextModel config: hidden_act is "relu"/,
    ],
    [
      "a vocabulary of text",
      (_, __, c) => Object.assign(c.tokenizer, { vocab: { a: "b" } }),
      /c.safetensors: fewstep.config at "tokenizer.vocab.a": /,
    ],
    [
      "a vocabulary without its marks",
      (_, __, c) => Object.assign(c.tokenizer, { vocab: {} }),
      /c.safetensors: the tokenizer's vocabulary has no <\|startoftext\|>$/,
    ],
    [
      "bad sampling settings",
      (_, m) => Object.assign(m, { "fewstep.guidance": "off" }),
      /c.safetensors: fewstep.guidance is "off"; accepted are/,
    ],
    [
      "a tensor less",
      (t) => delete t["model.diffusion_model.out.2.bias"],
      /c.safetensors does not fit: 1 missing: conv_out.bias$/,
    ],
    [
      "a fused bias less",
      (t) => delete t["conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias"],
      /does not fit: 3 missing: \S*layers.1.self_attn.q_proj.bias, /,
    ],
    [
      "a tensor more",
      (t) => Object.assign(t, { "model.diffusion_model.input_blocks.99.0.op.bias": floats([1]) }),
      /does not fit: 1 left over: model.diffusion_model.input_blocks.99.0.op.bias$/,
    ],
    [
      "another shape",
      (t) => Object.assign(t, { "first_stage_model.decoder.conv_out.bias": floats([4]) }),
      /does not fit: 1 of another shape: decoder.conv_out.bias \(needs \[3\], has \[4\]\)$/,
    ],
  ])("%s", async (_, change, message) => {
    await spoiled(change);
    await expect(SDXL.load(at("c.safetensors"))).rejects.toThrow(message);
  });

  test("other files", async () => {
    await expect(SDXL.load(at("no.safetensors"))).rejects.toThrow(/no.safetensors: no such file$/);
    await saveCheckpoint(at("c.safetensors"), TINY);
    truncateSync(at("c.safetensors"), statSync(at("c.safetensors")).size - 1);
    await expect(SDXL.load(at("c.safetensors"))).rejects.toThrow(/c.safetensors: truncated/);
    put("a.txt", readFileSync(new URL(import.meta.url)));
    await expect(SDXL.load(at("a.txt"))).rejects.toThrow(/a.txt: not a safetensors file/);
    await saveLora(at("l.safetensors"), randomLora(own));
    const lora = /l.safetensors is a LoRA, not a single-file checkpoint; give it as a LoRA$/;
    await expect(SDXL.load(at("l.safetensors"))).rejects.toThrow(lora);
  });
});

test("the file holds ComfyUI's detection keys", async () => {
  await saveCheckpoint(at("c.safetensors"), TINY);
  await using file = await SafetensorsFile.open(at("c.safetensors"));
  for (const key of [
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    "conditioner.embedders.1.model.positional_embedding",
    "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_proj.bias",
    "conditioner.embedders.1.model.logit_scale",
    "first_stage_model.decoder.up.0.block.0.norm1.weight",
  ])
    expect([...file.entries.keys()]).toContain(key);
});
