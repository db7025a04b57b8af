/** @file Model folders as others save them: half precision, weights in parts, components left out. */

import { cpSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, beforeEach, describe, expect, test } from "vitest";
import { readJson, SDXL, saveJson } from "../../src/pipelines/index.ts";
import { castTensor, floats } from "../../src/tensor/index.ts";
import { loadSafetensors, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { apart, picture, type Tensors, TINY, unetTensors } from "./tiny.ts";

const FILE = "diffusion_pytorch_model";
let own: Tensors;
let expected: Uint8Array;
beforeAll(async () => {
  own = await unetTensors();
  expected = await picture();
});
beforeEach(() => cpSync(TINY, at("model"), { recursive: true }));
const made = () => picture({}, undefined, at("model"));
const unet = (name: string) => join(at("model"), "unet", name);

/** The UNet in three files and their index. */
async function split(index = `${FILE}.safetensors.index.json`): Promise<Record<string, string>> {
  rmSync(unet(`${FILE}.safetensors`));
  const names = [1, 2, 3].map((i) => `${FILE}-0000${i}-of-00003.safetensors`);
  const map = Object.fromEntries(Object.keys(own).map((key, i) => [key, names[i % 3]]));
  for (const name of names) {
    const part = Object.entries(own).filter(([key]) => map[key] === name);
    await saveSafetensors(unet(name), Object.fromEntries(part));
  }
  await saveJson(unet(index), { metadata: { total_size: 1 }, weight_map: map });
  return map;
}

test("weights in parts", async () => {
  await split();
  expect(await made()).toEqual(expected);
});

test("weights in parts of half precision, beside nothing else", async () => {
  await split(`${FILE}.safetensors.index.fp16.json`);
  expect(await made()).toEqual(expected);
});

test("half precision", async () => {
  for (const part of ["unet", "vae", "text_encoder", "text_encoder_2"]) {
    const stem = part.startsWith("text") ? "model" : FILE;
    const file = join(at("model"), part, `${stem}.safetensors`);
    const { tensors } = await loadSafetensors(file);
    rmSync(file);
    const half = Object.entries(tensors).map(([key, t]) => [key, castTensor(t, "float16")] as const);
    await saveSafetensors(file.replace(".safetensors", ".fp16.safetensors"), Object.fromEntries(half));
  }
  expect(apart(await made(), expected)).toBeLessThanOrEqual(8);
});

test("components that nothing needs may be there", async () => {
  const index = await readJson(at("model/model_index.json"));
  await saveJson(at("model/model_index.json"), {
    ...index,
    image_encoder: [null, null],
    feature_extractor: ["transformers", "CLIPImageProcessor"],
  });
  mkdirSync(at("model/safety_checker"));
  expect(await made()).toEqual(expected);
});

describe("refused in one sentence", () => {
  test.each<[string, (index: Record<string, unknown>) => unknown, RegExp]>([
    [
      "another pipeline",
      (index) => Object.assign(index, { _class_name: "StableDiffusionPipeline" }),
      /model is made for "StableDiffusionPipeline"; fewstep runs models of StableDiffusionXLPipeline$/,
    ],
    [
      "a refiner",
      (index) => Object.assign(index, { text_encoder: [null, null] }),
      /model has no text_encoder, as refiners and parts of models; name a whole SDXL model$/,
    ],
  ])("%s", async (_, change, message) => {
    const index = await readJson(at("model/model_index.json"));
    change(index);
    await saveJson(at("model/model_index.json"), index);
    await expect(SDXL.load(at("model"))).rejects.toThrow(message);
  });

  test("a UNet for inpainting", async () => {
    const config = await readJson(unet("config.json"));
    await saveJson(unet("config.json"), { ...config, in_channels: 9 });
    await expect(SDXL.load(at("model"))).rejects.toThrow(/unet takes 9 channels, as UNets for inpainting/);
  });

  test("pickles alone", async () => {
    renameSync(unet(`${FILE}.safetensors`), unet(`${FILE}.bin`));
    await expect(SDXL.load(at("model"))).rejects.toThrow(
      /unet has no weights: .*; PyTorch's pickles, which can run code, are never opened$/,
    );
  });

  test("parts that are missing, elsewhere, or overlap", async () => {
    const index = unet(`${FILE}.safetensors.index.json`);
    const map = await split();
    await saveJson(index, { weight_map: { ...map, a: "../../x.safetensors" } });
    const elsewhere = /index.json: lists "..\/..\/x.safetensors"; expected .safetensors files beside it$/;
    await expect(SDXL.load(at("model"))).rejects.toThrow(elsewhere);
    await saveJson(index, { weight_map: [] });
    await expect(SDXL.load(at("model"))).rejects.toThrow(/index.json: no weight_map that lists files$/);
    await saveJson(index, { weight_map: map });
    await saveSafetensors(unet(`${FILE}-00003-of-00003.safetensors`), { "conv_in.bias": floats([1]) });
    await expect(SDXL.load(at("model"))).rejects.toThrow(/unet: "conv_in.bias" is in two files$/);
    rmSync(unet(`${FILE}-00003-of-00003.safetensors`));
    await expect(SDXL.load(at("model"))).rejects.toThrow(/00003-of-00003.safetensors: no such file$/);
  });

  test("weights that are no numbers: it says whose", async () => {
    const broken = async (folder: string, file: string, key: string) => {
      const path = join(at("model"), folder, `${file}.safetensors`);
      const { tensors } = await loadSafetensors(path);
      const { shape, data } = tensors[key];
      const nan = floats(shape, new Float32Array(data.length).fill(Number.NaN));
      await saveSafetensors(path, { ...tensors, [key]: nan });
      const error = await made().catch((e: Error) => e);
      await saveSafetensors(path, tensors);
      return (error as Error).message;
    };
    const says = "of model computed values that are no numbers: its weights are damaged, or too large";
    expect(await broken("unet", FILE, "conv_in.bias")).toContain(`the UNet ${says}`);
    expect(await broken("vae", FILE, "decoder.conv_out.bias")).toContain(`the VAE ${says}`);
    const norm = "text_model.encoder.layers.0.layer_norm1.weight";
    expect(await broken("text_encoder_2", "model", norm)).toContain(`a text encoder ${says}`);
  });

  test("a pickle as the model", async () => {
    put("x.ckpt", "PK\u0003\u0004 archive/data.pkl");
    await expect(SDXL.load(at("x.ckpt"))).rejects.toThrow(/x.ckpt: not a safetensors file: a PyTorch pickle/);
  });
});
