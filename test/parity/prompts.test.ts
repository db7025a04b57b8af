/** @file Weighted and long prompts, skipped layers, told sizes and tiles against what `record_prompts.py` recorded. */

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { readComponents } from "../../src/pipelines/components.ts";
import { type GenerateOptions, SDXL } from "../../src/pipelines/index.ts";
import { vaeCompiler } from "../../src/pipelines/programs.ts";
import { tiledDecode, tilesFor } from "../../src/pipelines/tiling.ts";
import type { FloatTensor } from "../../src/tensor/index.ts";
import { goldenJson, goldenPath, goldenTensors, worst } from "./golden.ts";

const TINY = goldenPath("tiny-sdxl");
const calls = Object.entries(
  (await goldenJson("prompts")) as Record<string, GenerateOptions & { prompt: string }>,
);
const { hidden, pooled, latents, tiles } = await goldenTensors(
  "prompts",
  "hidden",
  "pooled",
  "latents",
  "tiles",
);

describe("prompts", () => {
  let sdxl: SDXL;
  beforeAll(async () => {
    sdxl = await SDXL.load(TINY, { threads: 1 });
  });
  afterAll(() => sdxl?.dispose());

  async function denoised(prompt: string, options: GenerateOptions): Promise<FloatTensor> {
    const run = sdxl.denoise(prompt, options);
    let step = await run.next();
    while (!step.done) step = await run.next();
    return step.value;
  }

  test.each(calls)("%s", async (name, { prompt, ...options }) => {
    const encoded = await sdxl.encode([prompt], options);
    expect(worst({ ...encoded }, { hidden: hidden[name], pooled: pooled[name] }).error).toBeLessThan(1e-5);
    const expected = { latents: latents[name] };
    expect(worst({ latents: await denoised(prompt, options) }, expected).error).toBeLessThan(1e-4);
    const { guidance, steps, seed, negativePrompt } = options; // the rest has an effect
    const plain = { guidance, steps, seed, negativePrompt, promptWeighting: "none" } as const;
    expect(worst({ latents: await denoised(prompt, plain) }, expected).error).toBeGreaterThan(1e-2);
  });

  test("more layers than there are cannot be skipped", async () => {
    const skipped = (clipSkip: number) => sdxl.encode(["x"], { clipSkip });
    const message = "with these text encoders it is a whole number from 0 to 1";
    for (const count of [2, -1, 0.5, Number.NaN]) await expect(skipped(count)).rejects.toThrow(message);
  });
});

test("tiles", async () => {
  const parts = await readComponents(TINY, {});
  await using vae = await vaeCompiler(parts, { threads: 1 }).compile();
  const decode = async (tile: FloatTensor) => (await vae.run({ latents: tile })).pictures as FloatTensor;
  const some = tilesFor({ ...parts.vae, sampleSize: 32 }, [19, 13], "on");
  expect(some).toEqual({ factor: 4, side: 8, step: 6 });
  const picture = await tiledDecode(decode, tiles.latents as FloatTensor, some!);
  expect(worst({ picture }, { picture: tiles.picture }).error).toBeLessThan(1e-5);
});
