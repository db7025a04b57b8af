/** @file The files of formats.ts: the pictures that diffusers makes with them, at the settings they carry. */

import { join } from "node:path";
import { beforeEach, expect, test } from "vitest";
import { type LoadOptions, SDXL } from "../../src/pipelines/index.ts";
import { tensor } from "../../src/tensor/index.ts";
import { at } from "../data/temporary.ts";
import { TINY } from "../pipelines/tiny.ts";
import { writeFormats } from "./formats.ts";
import { difference, goldenJson, goldenTensors, worst } from "./golden.ts";

interface Call {
  prompt: string;
  seed: number;
  batch?: number;
  strength?: number;
}

const calls = (await goldenJson("formats")) as Record<string, Call>;
const { latents, pictures } = await goldenTensors("formats", "latents", "pictures");
beforeEach(() => writeFormats(at(".")));

async function compare(name: string, model: string, options: LoadOptions): Promise<void> {
  const { prompt, seed, batch } = calls[name];
  await using sdxl = await SDXL.load(model, { threads: 1, ...options });
  const run = sdxl.denoise(prompt, { seed, batch });
  let step = await run.next();
  while (!step.done) step = await run.next();
  expect(worst({ [name]: step.value }, { [name]: latents[name] }).error).toBeLessThan(1e-4);
  const bytes = (await sdxl.textToImage(prompt, { seed, batch })).flatMap((p) => Array.from(p.data));
  const actual = tensor("uint8", pictures[name].shape, Uint8Array.from(bytes));
  expect(difference(actual, pictures[name])).toBeLessThanOrEqual(2);
}

test.each(Object.entries(calls))("%s", async (name, { strength }) => {
  const file = join(at("."), `${name}.safetensors`);
  await compare(name, TINY, strength === undefined ? { unet: file } : { loras: { [file]: strength } });
});

test("checkpoint", () => compare("unet", at("checkpoint.safetensors"), {}));
