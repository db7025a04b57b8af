/** @file Model folders against diffusers' StableDiffusionXLPipeline: latents and pictures. */

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { bundledModel, type GenerateOptions, SDXL } from "../../src/pipelines/index.ts";
import { SAMPLERS } from "../../src/samplers/index.ts";
import { tensor } from "../../src/tensor/index.ts";
import { difference, goldenJson, goldenPath, goldenTensors, worst } from "./golden.ts";

type Call = Omit<GenerateOptions, "sampler"> & { prompt: string; sampler?: string };

describe.each([
  ["pipeline", goldenPath("tiny-sdxl")],
  ["bundled", bundledModel()],
])("%s", async (golden, folder) => {
  const calls = Object.entries((await goldenJson(golden)) as Record<string, Call>);
  let sdxl: SDXL;
  beforeAll(async () => {
    sdxl = await SDXL.load(folder, { threads: 1, steps: 25 }); // the model's own UNet
  });
  afterAll(() => sdxl?.dispose());

  test.each(calls)("%s", async (name, { prompt, sampler = "euler", ...rest }) => {
    const { latents, pictures } = await goldenTensors(golden, "latents", "pictures");
    const options = { ...rest, sampler: SAMPLERS[sampler] };

    const run = sdxl.denoise(prompt, options);
    let step = await run.next();
    while (!step.done) step = await run.next();
    expect(worst({ [name]: step.value }, { [name]: latents[name] }).error).toBeLessThan(1e-4);

    const made = await sdxl.textToImage(prompt, options);
    const expected = pictures[name]; // [B,H,W,3]
    const bytes = made.flatMap((p) => Array.from(p.data));
    expect(made.map((p) => [p.height, p.width])).toEqual(made.map(() => expected.shape.slice(1, 3)));
    const actual = tensor("uint8", expected.shape, Uint8Array.from(bytes));
    expect(difference(actual, expected)).toBeLessThanOrEqual(2);
  });
});
