/** @file VAEs on their own, full and tiny, under every naming: the same picture, or one sentence. */

import { cpSync, readFileSync } from "node:fs";
import { beforeAll, beforeEach, describe, expect, test } from "vitest";
import { graph, input } from "../../src/graph/index.ts";
import { vaeConfig } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";
import { readAutoencoder } from "../../src/pipelines/autoencoder.ts";
import { weightsOf } from "../../src/pipelines/folder.ts";
import { readJson, SDXL, saveJson } from "../../src/pipelines/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { castTensor, floats, type HostTensor } from "../../src/tensor/index.ts";
import {
  loadSafetensors,
  saveSafetensors,
  tensorSource,
  vaeTable,
  writeSafetensors,
} from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";
import { goldenTensors, worst } from "../parity/golden.ts";
import { apart, changed, picture, type Tensors, TINY } from "./tiny.ts";

const VAE = `${TINY}/vae`;
let own: Tensors;
let expected: Uint8Array;
beforeAll(async () => {
  const { tensors } = await loadSafetensors(`${VAE}/diffusion_pytorch_model.safetensors`);
  own = changed(tensors, 5);
});

describe("a full one", () => {
  const names = async () => vaeTable(vaeConfig(await readJson(`${VAE}/config.json`)));
  beforeEach(async () => {
    if (expected) return;
    cpSync(TINY, at("model"), { recursive: true });
    await saveSafetensors(at("model/vae/diffusion_pytorch_model.safetensors"), own);
    expected = await picture({}, undefined, at("model"));
    expect(apart(expected, await picture())).toBeGreaterThan(5);
  });

  const sources = (tensors: Tensors) =>
    new Map(Object.entries(tensors).map(([key, t]) => [key, tensorSource(t)] as const));

  test("with diffusers' names", async () => {
    await saveSafetensors(at("x.safetensors"), own);
    expect(await picture({ vae: at("x.safetensors") })).toEqual(expected);
  });

  test("with those that diffusers gave before 0.17", async () => {
    const old = { to_q: "query", to_k: "key", to_v: "value", "to_out.0": "proj_attn" };
    const renamed = Object.entries(own).map(([key, t]) => {
      const [now, then] = Object.entries(old).find(([name]) => key.includes(`.${name}.`)) ?? ["", ""];
      return [now ? key.replace(`.${now}.`, `.${then}.`) : key, t] as const;
    });
    expect(renamed.filter(([key]) => key.includes("proj_attn")).length).toBe(4);
    await saveSafetensors(at("x.safetensors"), Object.fromEntries(renamed));
    expect(await picture({ vae: at("x.safetensors") })).toEqual(expected);
  });

  test.each(["", "first_stage_model."])("with those of checkpoints, after %o", async (prefix) => {
    await writeSafetensors(at("x.safetensors"), (await names()).write(sources(own), prefix));
    expect(await picture({ vae: at("x.safetensors") })).toEqual(expected);
  });

  test("as a folder, and that of a model folder", async () => {
    cpSync(VAE, at("folder"), { recursive: true });
    await saveSafetensors(at("folder/diffusion_pytorch_model.safetensors"), own);
    expect(await picture({ vae: at("folder") })).toEqual(expected);
    expect(await picture({ vae: TINY })).toEqual(await picture());
  });

  test("in half precision", async () => {
    const half = Object.entries(own).map(([key, t]) => [key, castTensor(t, "float16")] as const);
    await saveSafetensors(at("x.safetensors"), Object.fromEntries(half));
    expect(apart(await picture({ vae: at("x.safetensors") }), expected)).toBeLessThanOrEqual(3);
  });
});

describe("a tiny one", async () => {
  const { weight, input: inputs, output } = await goldenTensors("tiny", "weight", "input", "output");

  /** Under the names of TAESD: the decoder counts its clamp, which has no tensors. */
  const original = (key: string) =>
    key
      .replace(/^encoder\.layers\./, "encoder.")
      .replace(/^decoder\.layers\.(\d+)/, (_, n) => `decoder.${Number(n) + 1}`);

  async function decoded(path: string): Promise<Record<string, HostTensor>> {
    const { vae, source } = await readAutoencoder(path);
    const latents = input("latents", "float32", inputs.latents.shape as number[]);
    const g = graph({ decoded: vae.decode(rootScope(), latents) });
    const { weights } = await weightsOf(g, { "": source }, /^encoder\./);
    await using program = await compile(g, { weights, threads: 1 });
    return await program.run({ latents: inputs.latents }); // before the program goes
  }

  const renamed = (name: (key: string) => string | undefined) =>
    Object.fromEntries(
      Object.entries(weight).flatMap(([key, t]) => {
        const other = name(key);
        return other === undefined ? [] : [[other, t] as const];
      }),
    );

  test.each<[string, (key: string) => string | undefined]>([
    ["diffusers", (key) => key],
    ["TAESD, both halves", original],
    ["TAESD, ComfyUI's prefix", (key) => `taesd_${original(key)}`],
    ["TAESD, the decoder alone", (key) => /^decoder\.(.+)$/.exec(original(key))?.[1]],
    ["diffusers, the decoder alone", (key) => (key.startsWith("decoder.") ? key : undefined)],
  ])("%s", async (_, name) => {
    await saveSafetensors(at("taesd.safetensors"), renamed(name));
    const { error } = worst(await decoded(at("taesd.safetensors")), { decoded: output.decoded });
    expect(error).toBeLessThan(1e-5);
  });

  test("in place of a model's VAE: a file, and a folder", async () => {
    await saveSafetensors(at("x/diffusion_pytorch_model.safetensors"), weight);
    const config = {
      _class_name: "AutoencoderTiny",
      num_decoder_blocks: [2, 1, 1],
      num_encoder_blocks: [1, 2, 1],
    };
    const blocks = { decoder_block_out_channels: [8, 8, 8], encoder_block_out_channels: [8, 8, 8] };
    await saveJson(at("x/config.json"), { ...config, ...blocks });
    const file = await picture({ vae: at("x/diffusion_pytorch_model.safetensors") });
    expect(await picture({ vae: at("x") })).toEqual(file);
    expect(apart(file, await picture())).toBeGreaterThan(5);
  });

  test.each<[string, (key: string) => string | undefined, RegExp]>([
    [
      "the encoder alone",
      (key) => (key.startsWith("encoder.") ? original(key) : undefined),
      /this is the encoder of a tiny VAE; pictures need its decoder$/,
    ],
    [
      "a tensor less",
      (key) => (key === "decoder.layers.0.bias" ? undefined : key),
      /x.safetensors does not fit: 1 missing: decoder.layers.0.bias$/,
    ],
  ])("refused: %s", async (_, name, message) => {
    await saveSafetensors(at("x.safetensors"), renamed(name));
    await expect(SDXL.load(TINY, { vae: at("x.safetensors") })).rejects.toThrow(message);
  });
});

describe("refused in one sentence", () => {
  test.each<[string, Tensors, RegExp]>([
    [
      "a UNet",
      { "add_embedding.linear_1.weight": floats([1]) },
      /x.safetensors is a UNet .*, not a VAE; give it as the UNet$/,
    ],
    [
      "something",
      { a: floats([1]) },
      /x.safetensors: there is no tensor decoder.conv_in.weight, which tells/,
    ],
    [
      "16 channels, as of Flux",
      { "decoder.conv_in.weight": floats([8, 16, 3, 3]), "decoder.mid.block_1.norm1.weight": floats([8]) },
      /x.safetensors decodes latents of 16 channels; this model needs 4$/,
    ],
  ])("%s", async (_, tensors, message) => {
    await saveSafetensors(at("x.safetensors"), {
      ...tensors,
      ...(Object.keys(tensors).some((key) => key.startsWith("decoder."))
        ? {
            "decoder.up.0.block.0.conv1.weight": floats([8, 8, 3, 3]),
            "decoder.up.0.block.1.conv1.weight": floats([8, 8, 3, 3]),
          }
        : {}),
    });
    await expect(SDXL.load(TINY, { vae: at("x.safetensors") })).rejects.toThrow(message);
  });

  test("a folder of another class", async () => {
    cpSync(VAE, at("folder"), { recursive: true });
    const config = JSON.parse(readFileSync(at("folder/config.json"), "utf8"));
    await saveJson(at("folder/config.json"), { ...config, _class_name: "AutoencoderKLWan" });
    const message = /folder is of the class AutoencoderKLWan; use an AutoencoderKL or AutoencoderTiny$/;
    await expect(SDXL.load(TINY, { vae: at("folder") })).rejects.toThrow(message);
  });
});
