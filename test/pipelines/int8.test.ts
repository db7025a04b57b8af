/** @file Pictures with int8 networks: how near they come to float, their cache file, hard layers, adapters, memory. */

import { cpSync, readdirSync, readFileSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { unetConfig } from "../../src/models/index.ts";
import { type ComponentOptions, readComponents } from "../../src/pipelines/components.ts";
import { type LoadOptions, planText, SDXL, saveComponent } from "../../src/pipelines/index.ts";
import { LoraLibrary } from "../../src/pipelines/library.ts";
import { unetParameters } from "../../src/pipelines/parameters.ts";
import type { PrecisionOptions } from "../../src/pipelines/precision.ts";
import { partCompiler } from "../../src/pipelines/programs.ts";
import { weightBits } from "../../src/quantize/matrix.ts";
import { floats, Generator, toFloat32 } from "../../src/tensor/index.ts";
import { loadSafetensors, SafetensorsFile, saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";
import { goldenPath } from "../parity/golden.ts";
import { randomTensors } from "./small.ts";
import { apart, changed, picture, randomLora, TINY, unetTensors } from "./tiny.ts";

const WEIGHTS = "unet/diffusion_pytorch_model.safetensors";
/** The tiny model's layers are all small; these are the larger half. */
const MINIMUM = 145;
const INT8: LoadOptions = { precision: "int8", choices: { minimum: MINIMUM } };
const EVERY: LoadOptions = { precision: "int8", choices: { minimum: 1 } };
/** SNR by bits of a weight; what there is by default is up to the processor. */
const LEAST_DB: Readonly<Record<number, number>> = { 8: 30, 7: 26, 6: 20 };

beforeEach(() => {
  process.env.FEWSTEP_CACHE = at("cache");
});

interface Run {
  prediction: Float32Array;
  notices: string[];
}

/** What the UNet of a model predicts for random inputs, and what was said on the way. */
async function predicted(model: string, options: PrecisionOptions & ComponentOptions = {}): Promise<Run> {
  const notices: string[] = [];
  const parts = await readComponents(model, options);
  const { unet, text, tokenizers } = parts;
  const g = new Generator(5);
  const encode = (rows: number) => ({
    hidden: g.randn([rows, tokenizers[0].maxLength, unet.cross_attention_dim]),
    pooled: g.randn([rows, text[1].projection_dim]),
  });
  const side = unet.sample_size as number;
  const inputs = {
    sample: g.randn([1, 4, side, side]),
    timestep: floats([1], [500]),
    ...encode(1),
    time_ids: floats([1, 6], [side, side, 0, 0, side, side]),
  };
  const run = { threads: 1, onNotice: (sentence: string) => notices.push(sentence), ...options };
  const library = new LoraLibrary(parts);
  const fixed = await Promise.all(parts.loras.map((lora) => library.place(lora)));
  const told = { ...run, encode: async (prompts: readonly string[]) => encode(prompts.length) };
  await using program = await partCompiler("unet", parts, fixed, told).compile();
  const { prediction } = await program.run(inputs);
  return { prediction: prediction.data as Float32Array, notices };
}

function snr(exact: Float32Array, y: Float32Array): number {
  const energy = (x: Float32Array) => x.reduce((sum, v) => sum + v * v, 0);
  return 10 * Math.log10(energy(exact) / energy(y.map((v, i) => v - exact[i])));
}

function cacheFile(): string {
  const [name, ...others] = readdirSync(at("cache/int8"));
  expect(others).toEqual([]);
  return at("cache/int8", name);
}

/** The tiny model with the first of those levels of SDXL's UNet that have attention. */
async function writeWide(folder: string): Promise<void> {
  cpSync(TINY, folder, { recursive: true });
  const config = unetConfig({
    ...JSON.parse(readFileSync(join(TINY, "unet/config.json"), "utf8")),
    block_out_channels: [320],
    down_block_types: ["CrossAttnDownBlock2D"],
    up_block_types: ["CrossAttnUpBlock2D"],
    transformer_layers_per_block: [1],
    attention_head_dim: [5],
    cross_attention_dim: 2048,
    norm_num_groups: 32,
  });
  const tensors = Object.fromEntries(randomTensors(unetParameters(config), 1, 1));
  await saveComponent(join(folder, "unet"), "UNet2DConditionModel", config, tensors, "float16");
}

describe("an int8 UNet", () => {
  test("of the tiny model is within 30 dB of the float one", async () => {
    const float = await predicted(TINY);
    const int8 = await predicted(TINY, INT8);
    expect(int8.notices[0]).toMatch(/^int8 weights of the UNet are made once, in .*tiny-sdxl-unet-\w+\.safe/);
    expect(Number(/UNet: ([\d.]+) dB/.exec(int8.notices[1])?.[1])).toBeGreaterThan(30);
    expect(snr(float.prediction, int8.prediction)).toBeGreaterThan(30);
    expect(int8.prediction).not.toEqual(float.prediction);
  });

  test("of SDXL's width is within 30 dB of the float one at 8 bits, within 26 at 7", async () => {
    await writeWide(at("model"));
    const float = await predicted(at("model"), { precision: "fp32" });
    const int8 = await predicted(at("model"), { precision: "int8" });
    expect(int8.notices[1]).toMatch(/; 0 of \d\d layers stay float$/);
    expect(snr(float.prediction, int8.prediction)).toBeGreaterThan(LEAST_DB[await weightBits()]);
    const bits = (await weightBits()) === 8 ? 7 : 6;
    const reduced = await predicted(at("model"), { precision: "int8", choices: { bits } });
    expect(reduced.notices[0]).toContain("of other files or settings");
    expect(snr(float.prediction, reduced.prediction)).toBeGreaterThan(LEAST_DB[bits]);
    expect(statSync(cacheFile()).size).toBeLessThan(0.7 * statSync(at("model", WEIGHTS)).size);
  });

  test("is not taken on its own for a small model, and refused on a GPU", async () => {
    expect((await predicted(TINY, { choices: { minimum: MINIMUM } })).notices).toEqual([]);
    await expect(SDXL.load(TINY, { precision: "int8", device: "webgpu" })).rejects.toThrow(
      "precision int8 needs device cpu, got webgpu; use fp32 there",
    );
  });
});

test("networks that are large are int8 without being asked, text encoders among them", async () => {
  const notices: string[] = [];
  const onNotice = (sentence: string) => notices.push(sentence);
  const made = await picture({ large: 1e4, choices: { minimum: MINIMUM }, onNotice });
  const told = notices.map(
    (sentence) => /^int8 (?:weights of the )?(text encoders|UNet)/.exec(sentence)?.[1],
  );
  expect(told).toEqual(["text encoders", "text encoders", "UNet", "UNet"]);
  const encoders = Number(/([\d.]+) dB/.exec(notices[1])?.[1]);
  expect(encoders).toBeGreaterThan(LEAST_DB[await weightBits()]);
  expect(readdirSync(at("cache/int8"))).toHaveLength(2);
  expect(apart(made, await picture())).toBeLessThan(12 * 2 ** (8 - (await weightBits()))); // a bit less, twice the error
});

describe("the cache file", () => {
  test("is written once, and made again when it is damaged", async () => {
    const first = await predicted(TINY, INT8);
    const { mtimeMs } = statSync(cacheFile());
    expect(await predicted(TINY, INT8)).toEqual({ prediction: first.prediction, notices: [] });
    expect(statSync(cacheFile()).mtimeMs).toBe(mtimeMs);
    truncateSync(cacheFile(), statSync(cacheFile()).size - 1);
    const { notices, prediction } = await predicted(TINY, INT8);
    expect(notices[0]).toMatch(/^int8 weights of the UNet are made again: .*\.safetensors is damaged$/);
    expect(prediction).toEqual(first.prediction);
  });

  test("is made again for other weights and other settings, and says so", async () => {
    cpSync(TINY, at("model"), { recursive: true });
    await predicted(at("model"), INT8);
    await saveSafetensors(at("model", WEIGHTS), changed(await unetTensors(), 4));
    const other = await predicted(at("model"), INT8);
    expect(other.notices[0]).toMatch(/are made again: .* is of other files or settings$/);
    expect(snr((await predicted(at("model"))).prediction, other.prediction)).toBeGreaterThan(25);
    const stricter = await predicted(at("model"), { ...INT8, choices: { minimum: MINIMUM, threshold: 500 } });
    expect(stricter.notices.join()).toMatch(/other files or settings.*; (\d+) of \1 layers stay float$/);
  });
});

test("a layer whose input has an outlier stays float, and the network stays near", async () => {
  const block = "mid_block.attentions.0.transformer_blocks.0";
  const tensors = await unetTensors();
  const edit = (name: string, f: (v: number, i: number) => number) => {
    const t = toFloat32(tensors[name]);
    tensors[name] = floats(t.shape, t.data.map(f));
  };
  edit(`${block}.norm1.weight`, (v, i) => (i === 0 ? 3000 : v));
  const hard = ["to_q", "to_k", "to_v"].map((name) => `${block}.attn1.${name}.weight`);
  for (const name of hard) {
    const [, width] = tensors[name].shape;
    edit(name, (v, i) => (i % width === 0 ? 0 : v));
  }
  cpSync(TINY, at("model"), { recursive: true });
  await saveSafetensors(at("model", WEIGHTS), tensors);
  const float = await predicted(at("model"));
  const int8 = await predicted(at("model"), EVERY);
  expect(int8.notices[1]).toMatch(/; 3 of \d+ layers stay float$/);
  await using file = await SafetensorsFile.open(cacheFile());
  const kept = [...file.entries].filter(
    ([name, { shape }]) => /transformer_blocks.*\.weight$/.test(name) && shape.length > 1,
  );
  expect(kept.map(([name, { dtype }]) => `${name} ${dtype}`).sort()).toEqual(
    hard.map((name) => `${name} float16`).sort(),
  );
  const forced = await predicted(at("model"), { ...EVERY, choices: { minimum: 1, threshold: -1000 } });
  expect(forced.notices[1]).toMatch(/; 0 of \d+ layers stay float$/);
  const near = snr(float.prediction, int8.prediction);
  expect(near).toBeGreaterThan(25);
  expect(snr(float.prediction, forced.prediction)).toBeLessThan(near - 3);
});

test("a LoRA is added to the int8 network in float", async () => {
  await saveLora(at("l.safetensors"), randomLora(await unetTensors()));
  const loras = { [at("l.safetensors")]: 0.7 };
  const float = await predicted(TINY, { loras });
  const int8 = await predicted(TINY, { ...INT8, loras });
  expect(snr(float.prediction, int8.prediction)).toBeGreaterThan(25);
  expect(snr((await predicted(TINY)).prediction, int8.prediction)).toBeLessThan(20);
  expect((await predicted(TINY, INT8)).notices).toEqual([]); // the adapter is not in the cache file
});

test("LoRAs of single pictures go on an int8 network, other adapters do not", async () => {
  const lora = at("l.safetensors");
  await saveLora(lora, randomLora(await unetTensors()));
  await using sdxl = await SDXL.load(TINY, { ...INT8, threads: 1 });
  const draw = async (loras: Record<string, number>, from = sdxl) => {
    const [made] = await from.textToImage("apple", { steps: 2, guidance: 1, seed: 3, loras });
    return made.data;
  };
  const plain = await draw({});
  const adapted = await draw({ [lora]: 0.7 });
  await using fixed = await SDXL.load(TINY, { ...INT8, threads: 1, loras: { [lora]: 0.7 } });
  expect(apart(adapted, await draw({}, fixed))).toBeLessThanOrEqual(1);
  expect(apart(adapted, plain)).toBeGreaterThan(5);
  await expect(draw({ [goldenPath("loras/lycoris.safetensors")]: 1 })).rejects.toThrow(
    /\.weight is int8, where an adapter can be a plain LoRA only; others need precision fp32$/,
  );
  expect(apart(await draw({}), plain)).toBeLessThanOrEqual(2);
});

describe("memory", () => {
  test("what does not fit is refused with what would", async () => {
    await expect(SDXL.load(TINY, { threads: 1, memoryLimit: 1e6 })).rejects.toThrow(
      /^loading tiny-sdxl needs 2\d\d MB of memory for the UNet in fp32 alone, 1 MB are free; use precision int8$/,
    );
    await using roomy = await SDXL.load(TINY, { threads: 1 });
    const memoryLimit = roomy.memoryPlan().loading + 1e6;
    await using sdxl = await SDXL.load(TINY, { threads: 1, memoryLimit });
    await expect(sdxl.textToImage("apple", { width: 1024, height: 512 })).rejects.toThrow(
      /^a picture of 1024×512 needs .* for the .* in fp32 alone, .* are free; use .* or a smaller size$/,
    );
  });

  test("the plan grows with size and batch, and shrinks with precision", async () => {
    await using sdxl = await SDXL.load(TINY, { threads: 1 });
    const unet = (options = {}) => sdxl.memoryPlan({ guidance: 1, ...options }).parts.UNet;
    expect(unet({ width: 128 }).activations / unet().activations).toBeCloseTo(2, 1);
    expect(unet({ guidance: 7 }).activations).toBe(2 * unet().activations);
    expect(unet({ width: 128 }).weights).toBe(unet().weights);
    const bytes = Object.values((await loadSafetensors(join(TINY, WEIGHTS))).tensors).reduce(
      (sum, { data }) => sum + 4 * data.length,
      0,
    );
    expect(unet().weights).toBe(bytes);
    expect(planText(sdxl.memoryPlan())).toHaveLength(4);
    const vae = (vaeTiling: "on" | "off") =>
      sdxl.memoryPlan({ width: 512, height: 512, vaeTiling }).parts["VAE decoder"].activations;
    expect(vae("on")).toBeLessThan(vae("off"));
  });
});
