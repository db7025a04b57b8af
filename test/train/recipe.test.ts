import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { parseDistillRecipe } from "../../src/distill/index.ts";
import { parseRecipe, type Recipe } from "../../src/train/index.ts";
import { differences, fingerprint } from "../../src/train/recipe.ts";

const BUNDLED = fileURLToPath(new URL("../../recipes/bundled", import.meta.url));

const VAE = {
  task: "vae",
  out: "run",
  data: { kind: "icons", folder: "icons" },
  steps: 10,
  learningRate: { peak: 1e-3 },
  config: { block_out_channels: [32] },
};
const tower = { hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1 };
const CLIP = {
  ...VAE,
  task: "clip",
  config: undefined,
  text_encoder: tower,
  text_encoder_2: tower,
  image_encoder: tower,
};
delete (CLIP as Partial<typeof CLIP>).config;

test("every default is written down", () => {
  expect(parseRecipe(VAE)).toEqual({
    task: "vae",
    out: "run",
    data: { kind: "icons", folder: "icons", splits: ["train"] },
    steps: 10,
    batch: 32,
    microBatch: 16,
    optimizer: { betas: [0.9, 0.99], eps: 1e-8, weightDecay: 0.01 },
    learningRate: { peak: 1e-3, warmup: 100, decay: "cosine", final: 0 },
    clipNorm: 1,
    emaDecay: 0.999,
    seed: 1,
    checkpointMinutes: 3,
    logEvery: 10,
    sampleEvery: 500,
    dtype: "float32",
    klWeight: 1e-4,
    l1Weight: 0.05,
    edgeWeight: 0.25,
    freezeEncoder: false,
    config: expect.objectContaining({ block_out_channels: [32], layers_per_block: 2, act_fn: "silu" }),
  });
});

describe("refused:", () => {
  test.each<[string, unknown, string]>([
    ["no object", 3, "r.json: the file is 3: expected object"],
    ["no task", { ...VAE, task: undefined }, 'r.json: task is missing; give "vae", "clip" or "unet"'],
    ["another task", { ...VAE, task: "gan" }, 'r.json: task is "gan"; give "vae", "clip" or "unet"'],
    ["a missing field", { ...VAE, steps: undefined }, "r.json: steps is missing: expected number"],
    [
      "an unknown field",
      { ...VAE, a: 1, b: 2 },
      'r.json: unknown field "a", "b"; remove it or correct its name',
    ],
    ["one of another task", { ...VAE, vocabulary: 600 }, 'unknown field "vocabulary"'],
    ["one within", { ...VAE, learningRate: { peak: 1, paek: 1 } }, 'unknown field "paek" in learningRate'],
    ["one of a network", { ...VAE, config: { act: "silu" } }, 'unknown field "act" in config'],
    ["one of a tower", { ...CLIP, text_encoder: { ...tower, x: 1 } }, 'unknown field "x" in text_encoder'],
    ["a text for a number", { ...VAE, batch: "32" }, 'batch is "32": expected number, received string'],
    ["a fraction of a step", { ...VAE, steps: 1.5 }, "steps is 1.5: expected int"],
    ["no steps", { ...VAE, steps: 0 }, "steps is 0: Too small: expected number to be >0"],
    ["a beta beyond 1", { ...VAE, optimizer: { betas: [0.9, 2] } }, "optimizer.betas.1 is 2: Too big"],
    [
      "another kind of data",
      { ...VAE, data: { kind: "x" } },
      `data.kind is "x": Invalid discriminator value. Expected 'icons' | 'pictures'`,
    ],
    [
      "a network's wrong value",
      { ...VAE, config: { act_fn: "tanh" } },
      'config: AutoencoderKL config: act_fn is "tanh"',
    ],
    ["a part of a batch", { ...VAE, batch: 6, microBatch: 4 }, "batch 6 is not a multiple of microBatch 4"],
    ["nothing to freeze", { ...VAE, freezeEncoder: true }, "freezeEncoder needs start"],
  ])("%s", (_, json, message) => expect(() => parseRecipe(json, "r.json")).toThrow(message));
});

describe("the fingerprint", () => {
  const changed = (changes: object): Recipe => parseRecipe({ ...VAE, ...changes });
  const original = fingerprint(parseRecipe(VAE));

  test("is pinned: when it changes, no saved run can go on", () => expect(original).toBe("518c62a101568311"));

  test("does not depend on the order of fields, or on defaults being written down", () => {
    expect(fingerprint(parseRecipe(Object.fromEntries(Object.entries(VAE).reverse())))).toBe(original);
    expect(fingerprint(parseRecipe(JSON.parse(JSON.stringify(parseRecipe(VAE)))))).toBe(original);
  });

  test.each<object>([
    { out: "elsewhere" },
    { steps: 20 },
    { checkpointMinutes: 9 },
    { dtype: "float16" },
    { learningRate: { peak: 1e-3, decay: "constant", final: 0.5, decaySteps: 3 } },
  ])("stays under %j: finished steps are the same", (changes) => {
    expect(fingerprint(changed(changes))).toBe(original);
    expect(differences(changed(changes), parseRecipe(VAE))).toEqual([]);
  });

  test.each<object>([
    { batch: 64 },
    { seed: 2 },
    { learningRate: { peak: 2e-3 } },
    { config: { block_out_channels: [64] } },
    { data: { kind: "icons", folder: "others" } },
    { start: "vae" },
  ])("changes under %j", (changes) => {
    expect(fingerprint(changed(changes))).not.toBe(original);
    expect(differences(changed(changes), parseRecipe(VAE))).toEqual(Object.keys(changes));
  });
});

describe("what is written down of the bundled model's recipes is the same recipe", () => {
  const bundled = readdirSync(BUNDLED).map((name) => {
    return [name, JSON.parse(readFileSync(join(BUNDLED, name), "utf8"))] as const;
  });
  test.each(bundled)("%s", (name, json) => {
    const parse = json.task === "distill" ? parseDistillRecipe : parseRecipe;
    const recipe = parse(json, name);
    expect(parse(JSON.parse(JSON.stringify(recipe)))).toEqual(recipe);
  });
});
