import { describe, expect, test } from "vitest";
import { GeneratedPicture } from "../../src/pipelines/index.ts";
import type { Model } from "../../web/server.ts";
import {
  fewSteps,
  fitted,
  isGuided,
  jobRequest,
  keyOf,
  type Offers,
  parametersOf,
  settingsFor,
  settingsFrom,
  sizesOf,
} from "../../web/settings.ts";
import { noise } from "../data/temporary.ts";

const model = (name: string, more: Partial<Model> = {}): Model => ({
  name,
  default: false,
  width: 64,
  height: 64,
  multiple: 4,
  steps: 25,
  guidance_scale: 4,
  few_steps: [],
  base: { steps: 25, guidance_scale: 4, distilled: false },
  ...more,
});
const offers: Offers = {
  models: [
    model("icons", { steps: 4, guidance_scale: 1, few_steps: [1, 2, 4, 8] }),
    model("teacher"),
    model("checkpoint", { base: { steps: 4, guidance_scale: 1, distilled: true } }),
  ],
  loras: [{ name: "ink" }, { name: "fast", steps: 2 }],
};
const [icons] = offers.models;
const own = { ...settingsFor(icons), prompt: "a red apple", seed: "7" };

describe("guidance and negative prompt are sent only where they have an effect", () => {
  test.each<[string, object, string[]]>([
    ["few steps", {}, []],
    ["the teacher", { steps: 25 }, ["guidance_scale", "negative_prompt"]],
    ["the teacher without guidance", { steps: 25, guidance: 1 }, ["guidance_scale"]],
    ["an adapter of style on the teacher", { loras: { ink: 1 } }, ["guidance_scale", "negative_prompt"]],
    ["an adapter for few steps", { loras: { fast: 1 }, steps: 2 }, []],
    ["a distilled checkpoint", { model: "checkpoint" }, []],
  ])("%s", (_, part, sent) => {
    const settings = { ...own, guidance: 4, negativePrompt: "green", ...part };
    const keys = Object.keys(jobRequest(settings, offers)).filter((k) => /guidance|negative/.test(k));
    expect(keys).toEqual(sent);
    expect(isGuided(settings, offers)).toBe(sent.length > 0);
  });
});

test("step counts are those of the model, or of the adapters on it", () => {
  expect(fewSteps(own, offers)).toEqual([1, 2, 4, 8]);
  expect(fewSteps({ ...own, model: "teacher" }, offers)).toEqual([]);
  expect(fewSteps({ ...own, loras: { ink: 1 } }, offers)).toEqual([]);
  expect(fewSteps({ ...own, loras: { ink: 1, fast: 1 } }, offers)).toEqual([2]);
});

test("sizes fit the model", () => {
  for (const { width, height } of sizesOf(model("x", { width: 1024, height: 1024, multiple: 8 }))) {
    expect([width % 8, height % 8]).toEqual([0, 0]);
    expect(width * height).toBeLessThanOrEqual(4 * 1024 * 1024);
  }
});

test("the same pictures have the same key", () => {
  expect(keyOf({ ...own, guidance: 9, negativePrompt: "x" }, offers)).toBe(keyOf(own, offers));
  expect(keyOf({ ...own, seed: "8" }, offers)).not.toBe(keyOf(own, offers));
});

test.each<[string, unknown, unknown]>([
  ["prompt", 5, ""],
  ["prompt", "a\0b", "ab"],
  ["model", "gone", "icons"],
  ["model", { toString: 1 }, "icons"],
  ["seed", { toString: 1 }, expect.stringMatching(/^\d{1,10}$/)],
  ["steps", 1.5, 4],
  ["steps", 1e9, 4],
  ["guidance", Number.NaN, 4],
  ["seed", "18446744073709551615", "18446744073709551615"],
  ["seed", "18446744073709551616", expect.stringMatching(/^\d{1,10}$/)],
  ["seed", "<b>", expect.stringMatching(/^\d{1,10}$/)],
  ["width", 65, 64],
  ["width", 1e6, 64],
  ["n", 11, 1],
  ["loras", { ink: 0.5, gone: 1 }, { ink: 0.5 }],
  ["loras", { ink: "x" }, {}],
  ["loras", null, {}],
])("stored settings are checked: %s %j", (name, value, expected) => {
  const given = { ...own, [name]: value };
  expect(fitted(given, offers)[name as "prompt"]).toEqual(expected);
});

describe("a picture's file gives its settings back", () => {
  const pixels = { width: 96, height: 64, data: new Uint8Array(96 * 64 * 3) };
  const settings = {
    prompt: "a red apple, flat style",
    negativePrompt: "green: leaves",
    steps: 8,
    guidance: 1,
    seed: 2n ** 64n - 1n,
    sampler: "Euler",
    model: "icons_lightning_8step_unet",
    loras: [{ name: "ink", strength: -0.5 }],
  };
  const fileOf = async (part: object = {}) =>
    new Blob([
      (await new GeneratedPicture(pixels, { ...settings, ...part }).png()) as Uint8Array<ArrayBuffer>,
    ]);

  test("all of them", async () => {
    const { settings: found, notes } = settingsFrom(await parametersOf(await fileOf()), offers);
    expect(notes).toEqual([]);
    expect(found).toMatchObject({
      prompt: "a red apple, flat style",
      negativePrompt: "green: leaves",
      steps: 8,
      seed: "18446744073709551615",
      width: 96,
      height: 64,
      model: "icons",
      loras: { ink: -0.5 },
    });
  });

  test("what the server does not have is told", async () => {
    const text = await parametersOf(await fileOf({ model: "other", loras: [{ name: "gone", strength: 1 }] }));
    const { settings: found, notes } = settingsFrom(text.replace("96x64", "9600x64"), offers);
    expect(found).toMatchObject({ model: "icons", loras: {}, width: 64, height: 64 });
    expect(notes).toHaveLength(3);
  });

  test.each<[string, () => Promise<Blob>, RegExp]>([
    ["no PNG", async () => new Blob(["GIF89a"]), /not a PNG/],
    [
      "a PNG without settings",
      async () => new Blob([(await noise("png")) as Uint8Array<ArrayBuffer>]),
      /does not tell/,
    ],
    ["half a PNG", async () => (await fileOf()).slice(0, 200), /truncated/],
  ])("%s is refused", async (_, file, message) => {
    await expect(parametersOf(await file())).rejects.toThrow(message);
  });
});
