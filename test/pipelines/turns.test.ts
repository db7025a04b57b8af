/** @file Networks that take turns in memory: the same pictures, what is loaded for them, and what stays. */

import { beforeEach, describe, expect, test, vi } from "vitest";
import { type GenerateOptions, type LoadOptions, planText, SDXL } from "../../src/pipelines/index.ts";
import { areTogether } from "../../src/pipelines/memory.ts";
import type { Picture } from "../../src/platform/index.ts";
import { Program } from "../../src/runtime/program.ts";
import { at } from "../data/temporary.ts";
import { goldenPath } from "../parity/golden.ts";
import { TINY } from "./tiny.ts";

const KOHYA = goldenPath("loras/kohya.safetensors");
const LYCORIS = goldenPath("loras/lycoris.safetensors");
const QUICK: GenerateOptions = { steps: 2, guidance: 1 };

beforeEach(() => {
  process.env.FEWSTEP_CACHE = at("cache");
});

/** The tiny model with just the memory that its largest network needs, for pictures of some kind. */
async function short(generate: GenerateOptions = QUICK, options: LoadOptions = {}) {
  const loaded: string[] = [];
  const onLoad: LoadOptions["onLoad"] = ({ name }) => loaded.push(name);
  const how = { threads: 1, ...options };
  await using roomy = await SDXL.load(TINY, how);
  const { loading, drawing } = roomy.memoryPlan(generate).alone;
  const memoryLimit = Math.max(loading, drawing);
  return { sdxl: await SDXL.load(TINY, { ...how, memoryLimit, onLoad }), loaded, memoryLimit };
}

async function bytes(sdxl: SDXL, options: GenerateOptions = {}, prompt = "a red lighthouse") {
  const pictures = await sdxl.textToImage(prompt, { ...QUICK, ...options });
  return pictures.map(({ data }) => data);
}

test.each<[string, GenerateOptions, GenerateOptions[]]>([
  [
    "plain ones, by tiles, and with adapters that come and go",
    QUICK,
    [
      {},
      { loras: { [KOHYA]: 0.7 } },
      { loras: { [KOHYA]: { unet: 0.2, text: 0.9 }, [LYCORIS]: 0.5 } },
      { vaeTiling: "on" },
      {},
    ],
  ],
  ["guided ones of a batch", { ...QUICK, guidance: 3, batch: 2 }, [{ negativePrompt: "a boat" }]],
])(
  "pictures are equal bit for bit: %s",
  async (_, common, kinds) => {
    const { sdxl } = await short(common);
    await using turns = sdxl;
    await using together = await SDXL.load(TINY, { threads: 1 });
    expect(areTogether(together.memoryPlan(common))).toBe(true);
    expect(areTogether(turns.memoryPlan(common))).toBe(false);
    for (const options of kinds) {
      const told = { ...common, ...options };
      expect(await bytes(turns, told)).toEqual(await bytes(together, told));
    }
  },
  300_000,
);

test("so are int8 ones, whose weights are made with the text encoders alone in memory", async () => {
  const int8 = { precision: "int8", choices: { minimum: 145 } } as const;
  const { sdxl, loaded, memoryLimit } = await short(QUICK, int8);
  await using turns = sdxl;
  expect(loaded).toEqual([]); // the one that had room has made the weights
  const expected = await bytes(turns);
  await using together = await SDXL.load(TINY, { threads: 1, ...int8 });
  expect(await bytes(together)).toEqual(expected);
  process.env.FEWSTEP_CACHE = at("another");
  const made: string[] = [];
  const onLoad: LoadOptions["onLoad"] = ({ name }) => made.push(name);
  await using fresh = await SDXL.load(TINY, { threads: 1, ...int8, memoryLimit, onLoad });
  expect(made).toEqual(["text encoders"]);
  expect(await bytes(fresh)).toEqual(expected);
}, 300_000);

test("a prompt that was encoded before needs no text encoders, nor does one with the same adapters", async () => {
  const { sdxl, loaded } = await short();
  await using turns = sdxl;
  const loads = async (options: GenerateOptions = {}, prompt?: string) => {
    loaded.length = 0;
    await bytes(turns, options, prompt);
    return loaded.filter((name) => name === "text encoders").length;
  };
  expect(loaded).toEqual([]);
  expect(await loads()).toBe(1);
  expect(await loads()).toBe(0);
  expect(await loads({}, "another")).toBe(1);
  expect(await loads()).toBe(0);
  expect(await loads({ loras: { [KOHYA]: 0.5 } })).toBe(1);
  expect(await loads({ loras: { [KOHYA]: 0.5 } })).toBe(0);
  expect(await loads({ loras: { [KOHYA]: { unet: 0.9, text: 0.5 } } })).toBe(0);
  expect(await loads({ loras: { [KOHYA]: 0.6 } })).toBe(1);
});

test("what the plan leaves no room for is released before another is loaded", async () => {
  const { sdxl, loaded } = await short();
  await using turns = sdxl;
  const { beside } = turns.memoryPlan(QUICK);
  const released = vi.spyOn(Program.prototype, "dispose");
  const [made] = await turns.textToImage("x", QUICK);
  const gone = (before: string, name: keyof typeof beside) =>
    beside[name].includes(before as never) ? 0 : 1;
  expect(loaded).toEqual(["text encoders", "UNet", "VAE decoder"]);
  expect(gone("text encoders", "UNet") + gone("UNet", "text encoders")).toBeGreaterThan(0);
  expect(released).toHaveBeenCalledTimes(gone("text encoders", "UNet") + gone("UNet", "VAE decoder"));
  expect(made.data.length).toBeGreaterThan(0);
  vi.restoreAllMocks();
});

test("previews between steps and pictures at the same time take turns as well", async () => {
  const { sdxl } = await short();
  await using turns = sdxl;
  await using together = await SDXL.load(TINY, { threads: 1 });
  const seen = async (from: SDXL) => {
    const previews: Uint8Array[] = [];
    const onStep: GenerateOptions["onStep"] = async ({ preview }) => {
      previews.push((await preview()).data);
    };
    const pictures = await Promise.all([
      bytes(from, { steps: 3, onStep }, "one"),
      bytes(from, { steps: 2, seed: 5, loras: { [KOHYA]: 1 } }, "two"),
    ]);
    return [previews, ...pictures];
  };
  expect(await seen(turns)).toEqual(await seen(together));
});

describe("the plan", () => {
  test("says what is released for what, and what is free", async () => {
    const { sdxl } = await short();
    await using turns = sdxl;
    const lines = planText(turns.memoryPlan(QUICK));
    expect(lines).toHaveLength(4);
    expect(lines.join("\n")).toMatch(/^(text encoders|UNet): .*; released for (text encoders|UNet)/m);
    expect(lines[3]).toMatch(/^all in memory: .* are free; taking turns: loading .*, drawing .* at least$/);
  });

  test("a larger picture takes turns where a usual one needs not", async () => {
    await using roomy = await SDXL.load(TINY, { threads: 1 });
    const { loading, drawing } = roomy.memoryPlan(QUICK);
    const memoryLimit = Math.max(loading, drawing);
    await using sdxl = await SDXL.load(TINY, { threads: 1, memoryLimit });
    const large = { ...QUICK, width: 72, height: 72 };
    expect(areTogether(sdxl.memoryPlan(QUICK))).toBe(true);
    expect(areTogether(sdxl.memoryPlan(large))).toBe(false);
    expect(await bytes(sdxl)).toEqual(await bytes(roomy));
    expect(await bytes(sdxl, large)).toEqual(await bytes(roomy, large));
    expect(await bytes(sdxl)).toEqual(await bytes(roomy));
  });
});

describe("with memory for all networks at small pictures, and turns at large ones,", () => {
  const LARGE: GenerateOptions = { ...QUICK, width: 72, height: 72 };

  async function between(): Promise<SDXL> {
    await using roomy = await SDXL.load(TINY, { threads: 1 });
    const { loading, drawing } = roomy.memoryPlan(QUICK);
    const sdxl = await SDXL.load(TINY, { threads: 1, memoryLimit: Math.max(loading, drawing) });
    expect([QUICK, LARGE].map((size) => areTogether(sdxl.memoryPlan(size)))).toEqual([true, false]);
    return sdxl;
  }

  test("a picture that was stopped keeps none of them", async () => {
    await using sdxl = await between();
    const onStep = (): void => {
      throw new Error("enough");
    };
    await expect(sdxl.textToImage("x", { ...QUICK, onStep })).rejects.toThrow("enough");
    expect(await sdxl.textToImage("x", LARGE)).toHaveLength(1);
  });

  test("a large one may be drawn between two steps of a small one", async () => {
    await using sdxl = await between();
    const [expected] = await bytes(sdxl);
    const [picture] = await bytes(sdxl, { onStep: async () => void (await sdxl.textToImage("x", LARGE)) });
    expect(picture).toEqual(expected);
  });
});

test("a model that was disposed of says so; runs that were begun end first", async () => {
  const sdxl = await SDXL.load(TINY, { threads: 1 });
  const decoding: Promise<Picture[]>[] = [];
  for await (const { denoised } of sdxl.denoise("x", QUICK)) decoding.push(sdxl.decode(denoised));
  await Promise.all([sdxl.dispose(), sdxl.dispose()]);
  for (const pictures of decoding) expect(await pictures).toHaveLength(1);
  await expect(sdxl.textToImage("x", QUICK)).rejects.toThrow("the model was disposed of; load it again");
  await sdxl.dispose();
});
