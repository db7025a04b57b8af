import { expect, test } from "vitest";
import { describeModel, SDXL } from "../../src/pipelines/index.ts";
import { promptCacheOf } from "../../src/pipelines/prompts.ts";
import { floats } from "../../src/tensor/index.ts";
import { TINY } from "./tiny.ts";

test("only prompts that are not known are encoded; the one used longest ago is forgotten", async () => {
  const encoded: string[][] = [];
  const cache = promptCacheOf(2);
  const ask = async (...prompts: string[]): Promise<number[]> => {
    const { hidden, pooled } = await cache(prompts, async (missing) => {
      encoded.push([...missing]);
      const lengths = missing.map((prompt) => prompt.length);
      return {
        hidden: floats([missing.length, 1, 1], lengths),
        pooled: floats([missing.length, 1], lengths),
      };
    });
    expect(hidden.shape).toEqual([prompts.length, 1, 1]);
    return [...pooled.data];
  };
  expect(await ask("a", "bb", "a")).toEqual([1, 1 + 1, 1]);
  expect(await ask("bb")).toEqual([2]);
  expect(await ask("ccc", "bb")).toEqual([3, 2]);
  expect(await ask("a")).toEqual([1]);
  expect(encoded).toEqual([["a", "bb"], ["ccc"], ["a"]]);
});

test("a picture is the same whether its prompt was known or not", async () => {
  const options = { steps: 1, guidance: 2, negativePrompt: "blue" };
  const pictures = [];
  for (const promptCache of [0, 8]) {
    await using sdxl = await SDXL.load(TINY, { threads: 1, promptCache });
    for (let i = 0; i < 2; i++) pictures.push((await sdxl.textToImage("a red lighthouse", options))[0].data);
  }
  for (const picture of pictures) expect(picture).toEqual(pictures[0]);
});

test("a step that throws is the last", async () => {
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const steps: number[] = [];
  const onStep = async ({ i }: { i: number }): Promise<void> => {
    steps.push(i);
    if (i === 1) throw new Error("enough");
  };
  await expect(sdxl.textToImage("x", { steps: 4, guidance: 1, onStep })).rejects.toThrow("enough");
  expect(steps).toEqual([0, 1]);
});

test("a model is described without being loaded", async () => {
  expect(await describeModel(TINY)).toMatchObject({
    name: "tiny-sdxl",
    sampleSize: 16,
    vaeScaleFactor: 4,
    fewSteps: { counts: [], usual: undefined },
    bytes: 59416 + 76816 + 206032 + 67604,
  });
});
