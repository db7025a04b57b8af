import { describe, expect, test } from "vitest";
import { selectModel, selectNamed } from "../../src/hub/select.ts";

const files = (...paths: string[]) => paths.map((path) => ({ path }));
const paths = (chosen: readonly { path: string }[]) => chosen.map(({ path }) => path).sort();

describe("a model folder", () => {
  const index = JSON.stringify({
    _class_name: "StableDiffusionXLPipeline",
    tokenizer: ["transformers", "CLIPTokenizer"],
    unet: ["diffusers", "UNet2DConditionModel"],
    vae: ["diffusers", "AutoencoderKL"],
    feature_extractor: [null, null],
    fewstep: { lightning: { default: 4, files: { "4": "x_4step_unet.safetensors" } } },
  });
  const listed = files(
    ".gitattributes",
    "README.md",
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "x_4step_unet.safetensors",
    "feature_extractor/preprocessor_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/model.onnx",
    "unet/diffusion_flax_model.msgpack",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
  );
  const common = [
    "model_index.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "x_4step_unet.safetensors",
  ];

  test("plain weights, all their parts", () => {
    expect(paths(selectModel(listed, index, { repo: "org/model" }))).toEqual(
      [...common, ...paths(listed).filter((path) => /^unet\/.*(?:-of-|index)/.test(path))].sort(),
    );
  });

  test("a variant, and plain weights where it is missing", () => {
    expect(paths(selectModel(listed, index, { repo: "org/model", variant: "fp16" }))).toEqual(
      [...common, "unet/diffusion_pytorch_model.fp16.safetensors"].sort(),
    );
  });

  test.each([
    ["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"],
    ["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"],
    ["diffusion_pytorch_model.safetensors.index.fp16.json"],
    ["diffusion_pytorch_model.fp16.safetensors.index.json"],
  ])("%s is of the variant fp16", (name) => {
    const both = files(`unet/${name}`, "unet/diffusion_pytorch_model.safetensors");
    expect(paths(selectModel(both, index, { repo: "org/model", variant: "fp16" }))).toEqual([`unet/${name}`]);
    expect(paths(selectModel(both, index, { repo: "org/model" }))).toEqual([both[1].path]);
  });

  test("half precision where there is nothing else", () => {
    const only = files(
      "unet/diffusion_pytorch_model.fp16.safetensors",
      "unet/diffusion_pytorch_model.ema.safetensors",
    );
    expect(paths(selectModel(only, index, { repo: "org/model" }))).toEqual([only[0].path]);
  });

  test("refuses a variant that is nowhere, and an index that is none", () => {
    expect(() => selectModel(listed, index, { repo: "org/model", variant: "bf16" })).toThrow(
      "org/model has no weights of the variant bf16; it has fp16",
    );
    for (const damaged of ["{", "[]", '{"fewstep": {"lightning": {"files": 3}}}'])
      expect(() => selectModel(listed, damaged, { repo: "org/model" })).toThrow(
        /model_index.json of org\/model is damaged/,
      );
  });
});

test("names and globs", () => {
  const listed = files(
    "a.safetensors",
    "b [1].safetensors",
    "unet/c.safetensors",
    "unet/deep/d.json",
    "e.txt",
  );
  const select = (...wanted: string[]) => paths(selectNamed(listed, wanted, "org/model"));
  expect(select("e.txt", "e.*")).toEqual(["e.txt"]);
  expect(select("b [1].safetensors")).toEqual(["b [1].safetensors"]);
  expect(select("*.safetensors")).toEqual(["a.safetensors", "b [1].safetensors", "unet/c.safetensors"]);
  expect(select("unet/*")).toEqual(["unet/c.safetensors"]);
  expect(select("unet/**")).toEqual(["unet/c.safetensors", "unet/deep/d.json"]);
  expect(() => select("e.txt", "f.safetensors")).toThrow(
    "org/model has no file f.safetensors; its weights are a.safetensors, b [1].safetensors, unet/c.safetensors",
  );
});
