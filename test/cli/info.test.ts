import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodePng, formatParameters } from "../../src/platform/index.ts";
import { castTensor, floats } from "../../src/tensor/index.ts";
import { saveLora, saveSafetensors, tensorSource, writeSafetensors } from "../../src/weights/index.ts";
import { checkpointTensors, smallNetworks } from "../pipelines/small.ts";
import { TINY } from "../pipelines/tiny.ts";
import { expectRefusal, fewstep } from "./run.ts";

const folder = mkdtempSync(join(tmpdir(), "fewstep-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("a picture", () => {
  const file = join(folder, "apple.png");
  const text = formatParameters("a red apple, りんご", "blurry", { Steps: 4, Seed: 7, Size: "2x1" });
  beforeAll(async () => {
    const texts = [
      { keyword: "parameters", text },
      { keyword: "Comment", text: "bell \x07 and \x1b[31mred" },
    ];
    writeFileSync(file, await encodePng({ width: 2, height: 1, data: new Uint8Array(6) }, texts));
  });

  test("as JSON", async () => {
    const { code, stdout } = await fewstep(["info", file, "--json"]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual({
      file,
      kind: "picture",
      width: 2,
      height: 1,
      prompt: "a red apple, りんご",
      negativePrompt: "blurry",
      parameters: { Steps: "4", Seed: "7", Size: "2x1" },
      texts: { Comment: "bell \x07 and \x1b[31mred" },
    });
  });

  test("as text, without the file's control characters", async () => {
    const { stdout } = await fewstep(["info", file]);
    expect(stdout).toContain("prompt: a red apple, りんご\n");
    expect(stdout).toContain("  Steps: 4\n");
    expect(stdout).toContain("  Comment: bell \ufffd and \ufffd[31mred\n");
  });

  test("damaged: says so with exit code 2", async () => {
    const whole = await encodePng({ width: 2, height: 1, data: new Uint8Array(6) });
    const half = join(folder, "half.png");
    writeFileSync(half, whole.subarray(0, 50));
    const { code, stderr } = await fewstep(["info", half]);
    expect(stderr).toMatch(/^fewstep: .*half.png: PNG is truncated/);
    expect(code).toBe(2);
  });
});

describe("weights", () => {
  const file = join(folder, "unet.safetensors");
  const tensors = {
    "conv_in.weight": floats([4, 3, 2, 2]),
    "conv_in.bias": floats([4]),
    scale: castTensor(floats([2]), "float16"),
  };
  const facts = { tensors: 3, parameters: 54, bytes: 212, dtypes: { float32: 2, float16: 1 } };

  test("are counted", async () => {
    await saveSafetensors(file, tensors, { format: "pt" });
    const { stdout } = await fewstep(["info", file, "--json"]);
    const none = "none: there is no option for it";
    const known = { file, kind: "weights", holds: "nothing that is known", use: none };
    expect(JSON.parse(stdout)).toEqual({ ...known, ...facts, metadata: { format: "pt" } });
  });

  test.each<[string, string[]]>([
    ["a UNet with diffusers' names", ["conv_in.weight", "add_embedding.linear_1.weight"]],
    ["a LoRA", ["unet.mid_block.attentions.0.proj_in.lora_A.weight"]],
    [
      "a single-file checkpoint",
      ["first_stage_model.decoder.conv_in.weight", "model.diffusion_model.out.2.bias"],
    ],
    ["a VAE", ["decoder.mid_block.resnets.0.conv1.weight"]],
    ["a text encoder", ["text_model.encoder.layers.0.mlp.fc1.bias"]],
    ["an image encoder", ["vision_model.encoder.layers.0.mlp.fc1.bias"]],
  ])("are %s by their keys", async (holds, keys) => {
    await saveSafetensors(file, Object.fromEntries(keys.map((key) => [key, floats([1])])));
    const { stdout } = await fewstep(["info", file, "--json"]);
    expect(JSON.parse(stdout)).toMatchObject({ holds });
  });

  test("of a LoRA: rank, alpha and how it is sampled", async () => {
    const module = { down: floats([8, 3]), up: floats([5, 8]), alpha: 4 };
    const modules = new Map(["a.b", "a.c"].map((path) => [path, module]));
    const metadata = { "fewstep.steps": "4", "fewstep.guidance": "1", note: "x".repeat(5000) };
    await saveLora(file, modules, { metadata });
    const { stdout } = await fewstep(["info", file, "--json"]);
    expect(JSON.parse(stdout)).toMatchObject({
      holds: "a LoRA",
      lora: { naming: "kohya", modules: 2, ranks: [8], alphas: [4] },
      sampling: { steps: 4, guidance: 1 },
      metadata: { note: "(5000 characters)" },
    });
    expect((await fewstep(["info", file])).stdout).toMatch(
      /^holds: a LoRA\nuse: --lora \S+\nlora:\n.*\n.*\n {2}ranks: 8$/m,
    );
  });

  test("with settings that cannot be: says so with exit code 2", async () => {
    await saveSafetensors(file, tensors, { "fewstep.steps": "0" });
    expectRefusal(await fewstep(["info", file]), /unet.safetensors: fewstep.steps is "0"; accepted are/);
  });

  test("of a UNet with the names of checkpoints: whether they are whole, and what they are for", async () => {
    const networks = smallNetworks();
    const named = checkpointTensors({ unet: networks.unet });
    await writeSafetensors(file, named);
    const whole = JSON.parse((await fewstep(["info", file, "--json"])).stdout);
    expect(whole).toMatchObject({
      holds: "a UNet with the names of checkpoints",
      family: "SDXL",
      use: `--unet ${file}`,
      complete: "yes",
    });
    named.delete("model.diffusion_model.out.2.bias");
    named.set("model.diffusion_model.extra", tensorSource(floats([1])));
    await writeSafetensors(file, named);
    const { stdout } = await fewstep(["info", file]);
    expect(stdout).toMatch(
      /^complete:\n {2}whole: no\n {2}missing: conv_out.bias\n {2}left over: model.diffusion_model.extra$/m,
    );
  });

  test("of another family have no use", async () => {
    await saveSafetensors(file, {
      "conv_in.weight": floats([8, 4, 3, 3]),
      "conv_out.weight": floats([4, 8, 3, 3]),
      "mid_block.attentions.0.proj_in.weight": floats([8, 8, 1, 1]),
      "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": floats([8, 768]),
    });
    const { stdout } = await fewstep(["info", file, "--json"]);
    const use = "none: it is of SD 1.x, fewstep runs models of the SDXL family";
    expect(JSON.parse(stdout)).toMatchObject({ family: "SD 1.x", use });
  });

  test("a pickle is named, and not opened", async () => {
    const pickle = join(folder, "model.ckpt");
    writeFileSync(pickle, "PK\u0003\u0004 archive/data.pkl");
    expectRefusal(await fewstep(["info", pickle]), /model.ckpt: a PyTorch pickle, which can run code/);
  });

  test("truncated: says so with exit code 2", async () => {
    const cut = join(folder, "cut.safetensors");
    writeFileSync(cut, readFileSync(file).subarray(0, -10));
    const { code, stderr } = await fewstep(["info", cut]);
    expect(stderr).toMatch(/^fewstep: cut.safetensors: truncated[^\n]*\n$/);
    expect(code).toBe(2);
  });

  test("of a model folder are listed by component", async () => {
    const model = join(folder, "model");
    const unet = join(model, "unet/diffusion_pytorch_model.safetensors");
    await saveSafetensors(unet, tensors);
    const index = {
      _class_name: "StableDiffusionXLPipeline",
      scheduler: ["diffusers", "EulerDiscreteScheduler"],
      unet: ["diffusers", "UNet2DConditionModel"],
      image_encoder: [null, null],
      "../../etc": ["diffusers", "UNet2DConditionModel"],
      force_zeros_for_empty_prompt: true,
    };
    writeFileSync(join(model, "model_index.json"), JSON.stringify(index));
    const { stdout } = await fewstep(["info", model, "--json"]);
    expect(JSON.parse(stdout)).toEqual({
      file: model,
      kind: "model",
      pipeline: "StableDiffusionXLPipeline",
      components: {
        scheduler: { class: "EulerDiscreteScheduler" },
        unet: { class: "UNet2DConditionModel", weights: { "diffusion_pytorch_model.safetensors": facts } },
      },
    });
  });

  test("of a model folder: whether each component is whole", async () => {
    const { stdout } = await fewstep(["info", TINY, "--json"]);
    const { components } = JSON.parse(stdout);
    expect(
      ["text_encoder", "text_encoder_2", "unet", "vae"].map((name) => components[name].complete),
    ).toEqual(["yes", "yes", "yes", "yes"]);
    expect(components.scheduler).toEqual({ class: "EulerDiscreteScheduler" });
  });

  test("damaged in a model folder: says which component's", async () => {
    const model = join(folder, "damaged");
    mkdirSync(join(model, "vae"), { recursive: true });
    writeFileSync(join(model, "model_index.json"), '{"vae": ["diffusers", "AutoencoderKL"]}');
    writeFileSync(join(model, "vae/model.safetensors"), "half");
    const refused = /damaged\/vae: model.safetensors: not a safetensors file: 4 bytes/;
    expectRefusal(await fewstep(["info", model]), refused);
  });

  test.each(["[]", "null", "{"])("a folder with %s for model_index.json is refused", async (json) => {
    const model = join(folder, "odd");
    mkdirSync(model, { recursive: true });
    writeFileSync(join(model, "model_index.json"), json);
    expectRefusal(await fewstep(["info", model]), /odd\/model_index.json: not a JSON object$/m);
  });

  test("a folder without model_index.json is refused", async () => {
    const { code, stderr } = await fewstep(["info", folder]);
    expect(stderr).toMatch(/not a model folder: it has no model_index.json/);
    expect(code).toBe(2);
  });
});
