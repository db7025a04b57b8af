/** @file A model folder against diffusers' StableDiffusionXLPipeline: latents and pictures of four steps. */

import { afterAll, beforeAll, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { type GenerateOptions, SDXL } from "../../src/pipelines/index.ts";
import { SAMPLERS } from "../../src/samplers/index.ts";
import { tensor } from "../../src/tensor/index.ts";
import { difference, goldenJson, goldenPath, goldenTensors, worst } from "./golden.ts";

type Call = Omit<GenerateOptions, "sampler"> & { prompt: string; sampler?: string };

const calls = Object.entries((await goldenJson("pipeline")) as Record<string, Call>);
let sdxl: SDXL;

beforeAll(async () => {
  sdxl = await SDXL.load(goldenPath("tiny-sdxl"), { threads: 1 });
});
afterAll(() => sdxl?.dispose());

test.each(calls)("%s", async (name, { prompt, sampler = "euler", ...rest }) => {
  const golden = await goldenTensors("pipeline", "latents", "pictures");
  const options = { ...rest, steps: 4, sampler: SAMPLERS[sampler] };

  const run = sdxl.denoise(prompt, options);
  let step = await run.next();
  while (!step.done) step = await run.next();
  const latents = worst({ [name]: step.value }, { [name]: golden.latents[name] });
  expect(latents.error).toBeLessThan(1e-4);

  const pictures = await sdxl.textToImage(prompt, options);
  const expected = golden.pictures[name]; // [B,H,W,3]
  const bytes = pictures.flatMap((p) => Array.from(p.data));
  expect(pictures.map((p) => [p.height, p.width])).toEqual(pictures.map(() => expected.shape.slice(1, 3)));
  const actual = tensor("uint8", expected.shape, Uint8Array.from(bytes));
  expect(difference(actual, expected)).toBeLessThanOrEqual(2);
});
