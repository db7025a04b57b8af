import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { describeModel, type GenerateOptions, SDXL } from "../../src/pipelines/index.ts";
import { joinedPrompts, type Prompt, promptCacheOf } from "../../src/pipelines/prompts.ts";
import { floats } from "../../src/tensor/index.ts";
import { TINY } from "./tiny.ts";

/** Of T tokens, all of one value. */
function encoding(T: number, value: number): Prompt {
  return { hidden: floats([1, T, 1], new Array(T).fill(value)), pooled: floats([1, 1], [value]) };
}

test("only prompts that are not known are encoded; the one used longest ago is forgotten", async () => {
  const encoded: string[][] = [];
  const cache = promptCacheOf(2);
  const ask = async (...prompts: string[]): Promise<number[]> => {
    const found = await cache(prompts, async (missing) => {
      encoded.push([...missing]);
      return missing.map(({ length }) => encoding(1, length));
    });
    return found.map(({ pooled }) => pooled.data[0]);
  };
  expect(await ask("a", "bb", "a")).toEqual([1, 1 + 1, 1]);
  expect(await ask("bb")).toEqual([2]);
  expect(await ask("ccc", "bb")).toEqual([3, 2]);
  expect(await ask("a")).toEqual([1]);
  expect(encoded).toEqual([["a", "bb"], ["ccc"], ["a"]]);
});

test("what was encoded in another way is not known", async () => {
  const cache = promptCacheOf(2);
  const ask = (way: string, value: number) => cache(["a"], async () => [encoding(1, value)], way);
  expect(await ask("none", 1)).toEqual([encoding(1, 1)]);
  expect(await ask("comfy", 2)).toEqual([encoding(1, 2)]);
  expect(await ask("none", 3)).toEqual([encoding(1, 1)]);
});

test("a batch is as long as its longest prompt: the others go on with empty ones", async () => {
  let asked = 0;
  const empty = async () => {
    asked++;
    return encoding(2, 0.5);
  };
  const { hidden, pooled } = await joinedPrompts([encoding(6, 1), encoding(2, 2)], empty);
  expect(hidden).toEqual(floats([2, 6, 1], [1, 1, 1, 1, 1, 1, 2, 2, 0.5, 0.5, 0.5, 0.5]));
  expect(pooled).toEqual(floats([2, 1], [1, 2]));
  expect((await joinedPrompts([encoding(2, 1), encoding(2, 2)], empty)).hidden.shape).toEqual([2, 2, 1]);
  expect(asked).toBe(1);
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

test("what is cut is told, of the negative prompt where it is read", async () => {
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const negativePrompt = "word ".repeat(200);
  const warnings = (guidance: number) =>
    sdxl.warnings({ promptWeighting: "none", guidance, negativePrompt }, negativePrompt);
  const cut = (name: string) => `the ${name} has more than 14 tokens; what follows them is not read`;
  expect(warnings(4)).toEqual([cut("prompt"), cut("negative prompt")]);
  expect(warnings(1)).toEqual([cut("prompt"), expect.stringContaining("a negative prompt has no effect")]);
});

describe("refused", () => {
  let sdxl: SDXL;
  beforeAll(async () => {
    sdxl = await SDXL.load(TINY, { threads: 1 });
  });
  afterAll(() => sdxl.dispose());

  test.each<[GenerateOptions | Record<string, unknown>, string]>([
    [{ batch: 0 }, "batch is 0; give a whole number from 1"],
    [{ batch: 1.5 }, "batch is 1.5; give a whole number from 1"],
    [{ guidance: Number.POSITIVE_INFINITY }, "guidance is Infinity; give a number from 0"],
    [{ guidanceRescale: 2 }, "guidanceRescale is 2; give a number from 0 to 1"],
    [{ negativePrompt: 5 }, "negativePrompt is 5; give a text"],
    [{ noiseRule: "a1111" }, 'noiseRule is "a1111"; give one of per-image, stream, comfyui'],
    [{ promptWeighting: "A1111" }, 'promptWeighting is "A1111"; give one of none, a1111, comfy'],
    [{ sampler: "euler" }, 'sampler is "euler"; give a sampler, such as SAMPLERS.euler'],
    [{ seed: -1 }, "seed is -1; give a whole number from 0 to 2⁶⁴ − 1"],
    [{ seed: 2n ** 64n }, "seed is 18446744073709551616; give a whole number"],
    [{ seed: 1.5 }, "seed is 1.5; give a whole number"],
    [{ vaeTiling: true }, "vaeTiling is true; give one of auto, on, off"],
  ])("%o", async (options, message) => {
    await expect(sdxl.textToImage("x", options)).rejects.toThrow(message);
  });

  test("no prompt", async () => {
    for (const none of [[], [5], undefined])
      await expect(sdxl.textToImage(none as unknown as string[])).rejects.toThrow("prompts are texts");
  });
});
