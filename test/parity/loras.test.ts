/** @file The adapters of record_loras.py: latents as diffusers, PEFT and LyCORIS make them, in three ways each. */

import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { convertModel, type GenerateOptions, SDXL } from "../../src/pipelines/index.ts";
import type { HostTensor } from "../../src/tensor/index.ts";
import { loadSafetensors, saveSafetensors, unetTable } from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";
import { TINY } from "../pipelines/tiny.ts";
import { goldenJson, goldenPath, goldenTensors, worst } from "./golden.ts";

interface Call {
  prompt: string;
  seed: number;
  file: string;
  strength: number;
}

const calls = Object.entries((await goldenJson("loras")) as Record<string, Call>);
const { latents } = await goldenTensors("loras", "latents");
const folder = goldenPath("loras");

async function latentsOf(
  sdxl: SDXL,
  { prompt, seed }: Call,
  more: GenerateOptions = {},
): Promise<HostTensor> {
  const run = sdxl.denoise(prompt, { steps: 2, guidance: 1, schedule: "trailing", seed, ...more });
  let step = await run.next();
  while (!step.done) step = await run.next();
  return step.value;
}

function expectGolden(name: string, actual: HostTensor): void {
  expect(worst({ [name]: actual }, { [name]: latents[name] }).error).toBeLessThan(1e-4);
}

test.each(calls)("%s, in the weights", async (name, call) => {
  const loras = { [join(folder, call.file)]: call.strength };
  await using sdxl = await SDXL.load(TINY, { threads: 1, loras });
  expect(sdxl.warnings()).toEqual([]);
  expectGolden(name, await latentsOf(sdxl, call));
});

test.each(calls)("%s, in the weights of a converted model", async (name, call) => {
  await convertModel(TINY, at("model.safetensors"), {
    loras: { [join(folder, call.file)]: call.strength },
  });
  await using sdxl = await SDXL.load(at("model.safetensors"), { threads: 1 });
  expectGolden(name, await latentsOf(sdxl, call));
});

describe("as inputs, one after the other on one model", () => {
  let sdxl: SDXL;
  beforeAll(async () => {
    sdxl = await SDXL.load(TINY, { threads: 1, promptCache: 4 });
    return () => sdxl.dispose();
  });

  test.each([...calls, ...calls.toReversed()])("%s", async (name, call) => {
    const loras = { [join(folder, call.file)]: call.strength };
    expectGolden(name, await latentsOf(sdxl, call, { loras }));
  });

  test("and without any the model is as it was", async () => {
    const [, call] = calls[0];
    await using plain = await SDXL.load(TINY, { threads: 1 });
    const [a, b] = [await latentsOf(sdxl, call), await latentsOf(plain, call)];
    expect(worst({ a }, { a: b }).error).toBeLessThan(1e-5);
    expect(worst({ a }, { a: latents[calls[0][0]] }).error).toBeGreaterThan(0.01);
  });
});

test("several at once, in the weights and as inputs", async () => {
  const files = calls.map(([, { file }], i) => [join(folder, file), 0.2 + 0.1 * i] as const);
  const call = calls[0][1];
  await using plain = await SDXL.load(TINY, { threads: 1 });
  await using all = await SDXL.load(TINY, { threads: 1, loras: Object.fromEntries(files) });
  const expected = await latentsOf(all, call);
  expect(worst({ a: await latentsOf(plain, call) }, { a: expected }).error).toBeGreaterThan(0.05);
  const actual = await latentsOf(plain, call, { loras: Object.fromEntries(files) });
  expect(worst({ a: actual }, { a: expected }).error).toBeLessThan(1e-4);
  await using some = await SDXL.load(TINY, { threads: 1, loras: Object.fromEntries(files.slice(0, 3)) });
  const rest = await latentsOf(some, call, { loras: Object.fromEntries(files.slice(3)) });
  expect(worst({ a: rest }, { a: expected }).error).toBeLessThan(1e-4);
});

describe("kohya's file under other names", () => {
  const [name, call] = calls.find(([name]) => name === "kohya")!;

  async function check(rename: (module: string) => string, ending = (part: string) => part): Promise<void> {
    await using sdxl = await SDXL.load(TINY, { threads: 1 });
    const paths = await modulePaths();
    const { tensors } = await loadSafetensors(join(folder, call.file));
    const renamed = Object.entries(tensors).map(([key, t]) => {
      const [, module, part] = /^lora_unet_(\w+)\.(.+)$/.exec(key) ?? [];
      return [module === undefined ? key : rename(paths.get(module)!) + ending(`.${part}`), t] as const;
    });
    await saveSafetensors(at("renamed.safetensors"), Object.fromEntries(renamed));
    const loras = { [at("renamed.safetensors")]: call.strength };
    expectGolden(name, await latentsOf(sdxl, call, { loras }));
  }

  async function modulePaths(): Promise<Map<string, string>> {
    const { tensors } = await loadSafetensors(join(TINY, "unet/diffusion_pytorch_model.safetensors"));
    const paths = Object.keys(tensors).map((key) => key.replace(/\.\w+$/, ""));
    return new Map(paths.map((path) => [path.replaceAll(".", "_"), path]));
  }

  const ldm = unetTable({
    block_out_channels: [4, 8, 8],
    layers_per_block: 1,
    down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types: ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
  });

  test("those of checkpoints, flat", () =>
    check((path) => `lora_unet_${ldm.toTheirs(path)!.replaceAll(".", "_")}`));
  test("those of checkpoints, as ComfyUI writes them", () =>
    check((path) => `diffusion_model.${ldm.toTheirs(path)}`));
  test("PEFT's, with an alpha", () =>
    check(
      (path) => `base_model.model.unet.${path}`,
      (part) => part.replace("lora_down", "lora_A.default").replace("lora_up", "lora_B.default"),
    ));
});
