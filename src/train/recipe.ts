/** @file Recipes: what to train, on what and how, as JSON. Every field is checked and every default written down. */

import { createHash } from "node:crypto";
import { z } from "zod";
import { clipTextConfig, clipVisionConfig, unetConfig, vaeConfig } from "../models/index.ts";
import { readJson } from "../pipelines/index.ts";

const fraction = z.number().min(0).max(1);
const count = z.int().positive();

/** The dataset that `fewstep data icons` wrote. */
const icons = z.strictObject({
  kind: z.literal("icons"),
  folder: z.string(),
  splits: z
    .array(z.enum(["train", "heldout-pair", "heldout-style"]))
    .min(1)
    .default(["train"]),
});

/** Pictures with captions: a folder of name.png + name.txt, metadata.jsonl or webdataset shards. */
const pictures = z.strictObject({
  kind: z.literal("pictures"),
  path: z.string(),
  /** Default: recognised. */
  convention: z.enum(["pairs", "metadata", "webdataset"]).optional(),
  /** Side of the square bucket in pixels; no bucket has more pixels. */
  size: count,
  /** Longest side over shortest of a bucket; 1 for squares only. */
  maxAspect: z.number().min(1).default(1),
});

const data = z.discriminatedUnion("kind", [icons, pictures]);

const optimizer = z.strictObject({
  /** Default "adamw"; "muon" for matrices, with AdamW for all else. */
  type: z.enum(["adamw", "muon"]).optional(), // not written down, so that runs begun before it was known go on
  betas: z.tuple([fraction, fraction]).default([0.9, 0.99]),
  eps: z.number().positive().default(1e-8),
  weightDecay: z.number().min(0).default(0.01),
});

const learningRate = z.strictObject({
  peak: z.number().positive(),
  warmup: z.int().min(0).default(100),
  decay: z.enum(["constant", "cosine"]).default("cosine"),
  decaySteps: count.optional(),
  final: fraction.default(0),
});

/** Fields that recipes of other kinds have in common with these. */
export const recipeFields = { data, optimizer, learningRate };

const common = {
  /** Folder of the run. */
  out: z.string(),
  data,
  steps: count,
  /** Pictures in one optimiser step. */
  batch: count.default(32),
  /** Pictures in one backward pass; a divisor of `batch`. Smaller needs less memory. */
  microBatch: count.default(16),
  optimizer: optimizer.prefault({}),
  learningRate,
  /** Largest global gradient norm. */
  clipNorm: z.number().positive().default(1),
  /** Decay of the averaged weights, which are what is saved. */
  emaDecay: fraction.default(0.999),
  seed: z.int().min(0).max(4000).default(1),
  checkpointMinutes: z.number().positive().default(3),
  logEvery: count.default(10),
  /** Steps between sample grids; 0 for none. */
  sampleEvery: z.int().min(0).default(500),
  /** Precision of the written weights. */
  dtype: z.enum(["float32", "float16"]).default("float32"),
};

/** A config.json. Files carry many fields that change nothing, but in a recipe an unknown one is a misspelt one. */
function network(parse: (json: unknown) => object) {
  return z.record(z.string(), z.unknown()).superRefine((given, context) => {
    try {
      const config = parse(given);
      const keys = Object.keys(given).filter((key) => !Object.hasOwn(config, key));
      if (keys.length > 0) context.addIssue({ code: "unrecognized_keys", keys, input: given });
    } catch (error) {
      context.addIssue({ code: "custom", message: (error as Error).message });
    }
  });
}

const vae = z.strictObject({
  task: z.literal("vae"),
  ...common,
  config: network(vaeConfig).transform(vaeConfig),
  /** Weight of the Kullback–Leibler term per latent value. */
  klWeight: z.number().min(0).default(1e-4),
  /** Weight of the absolute error beside the squared one. */
  l1Weight: z.number().min(0).default(0.05),
  /** Weight of the error of horizontal and vertical differences. */
  edgeWeight: z.number().min(0).default(0.25),
  /** A VAE to start from. */
  start: z.string().optional(),
  /** Keeps the encoder of `start`, so that its latents stay what they are. */
  freezeEncoder: z.boolean().default(false),
});

const clip = z.strictObject({
  task: z.literal("clip"),
  ...common,
  text_encoder: network(clipTextConfig),
  text_encoder_2: network(clipTextConfig),
  image_encoder: network(clipVisionConfig).transform(clipVisionConfig),
  /** Entries of the vocabulary, learned from the captions. */
  vocabulary: z.int().min(520).default(3072),
  /** Tokens of a text, start and end included. */
  maxLength: z.int().min(4).default(77),
  /** Largest shift of a picture, in pixels. */
  shift: z.int().min(0).default(3),
  /** Weight of the agreement between captions of a picture, which keeps words apart that pictures do not. */
  agreement: z.number().min(0).default(0),
});

const unet = z.strictObject({
  task: z.literal("unet"),
  ...common,
  config: network(unetConfig).transform(unetConfig),
  /** Folder of the frozen VAE. */
  vae: z.string(),
  /** Folder with text_encoder, text_encoder_2, tokenizer and tokenizer_2. */
  text: z.string(),
  /** Folder of the towers that judge the model, kept with it; default: those of `text`. */
  judge: z.string().optional(),
  /** Trains these text encoders with the UNet, as Rombach et al. 2022 did. */
  trainTextEncoders: z.boolean().default(false),
  /** Random captions of every picture, encoded once; a picture has a new one each time when the encoders are trained. */
  captions: count.default(6),
  /** Share of prompts dropped, for classifier-free guidance. */
  dropPrompt: fraction.default(0.1),
  /** Bound γ on the signal-to-noise ratio in the loss weight (Hang et al. 2023); 0 for none. */
  minSnr: z.number().min(0).default(5),
  /** Weight of the clean estimate's error: the bounded ratio, or that and one. */
  weighting: z.enum(["snr", "snr+1"]).default("snr"),
  /** Draws some timesteps more often: the last or first `portion` of them `multiplier` times as often as the others. */
  timestepBias: z
    .strictObject({
      strategy: z.enum(["none", "earlier", "later"]).default("none"),
      multiplier: z.number().positive().default(1),
      portion: fraction.default(0.25),
    })
    .prefault({}),
  /** A UNet folder to start from, for fine-tuning. */
  start: z.string().optional(),
  /** What `generate` does when nothing is asked. */
  defaults: z.strictObject({ steps: count.default(30), guidance: z.number().min(0).default(5) }).prefault({}),
  /** Of the sample grid. */
  prompts: z.array(z.string()).default(["a red apple", "a cat", "a house", "a yellow star"]),
});

const schema = z.discriminatedUnion("task", [vae, clip, unet]);

export type Recipe = z.infer<typeof schema>;
export type RecipeOf<T extends Recipe["task"]> = Extract<Recipe, { task: T }>;

/**
 * Checks a recipe and fills in its defaults.
 * @throws one sentence that names the field, what was given and what is accepted.
 */
export function parseRecipe(json: unknown, name = "recipe"): Recipe {
  const result = schema.safeParse(json);
  if (!result.success) throw new Error(`${name}: ${fieldError(result.error.issues[0], json)}`);
  const recipe = result.data;
  if (recipe.batch % recipe.microBatch !== 0)
    throw new Error(`${name}: batch ${recipe.batch} is not a multiple of microBatch ${recipe.microBatch}`);
  if (recipe.task === "vae" && recipe.freezeEncoder && !recipe.start)
    throw new Error(`${name}: freezeEncoder needs start, the VAE whose encoder is kept`);
  return recipe;
}

/** What is wrong with a field. */
export function fieldError(issue: z.core.$ZodIssue, json: unknown): string {
  const field = issue.path.join(".");
  if (issue.code === "custom") return `${field}: ${issue.message}`;
  if (issue.code === "unrecognized_keys") {
    const where = field ? ` in ${field}` : "";
    return `unknown field ${issue.keys.map((k) => JSON.stringify(k)).join(", ")}${where}; remove it or correct its name`;
  }
  const given = issue.path.reduce<unknown>(
    (o, k) => (o as Record<PropertyKey, unknown> | undefined)?.[k],
    json,
  );
  const value = JSON.stringify(given)?.slice(0, 60) ?? "missing";
  if (issue.code === "invalid_union" && field === "task")
    return `task is ${value}; give "vae", "clip" or "unet"`;
  const message = issue.message.replace(/^Invalid input: /, "").replace(", received undefined", "");
  return `${field || "the file"} is ${value}: ${message}`;
}

/** Reads a recipe file. Paths in it are relative to the working directory. */
export async function readRecipe(path: string): Promise<Recipe> {
  return parseRecipe(await readJson(path), path);
}

/** Fields that may change when a run goes on: they do not change what its finished steps did. */
const FREE = new Set([
  "out",
  "steps",
  "checkpointMinutes",
  "logEvery",
  "sampleEvery",
  "dtype",
  "prompts",
  "defaults",
  "judge",
]);

/** What decides the finished steps of a run. */
function identity({ learningRate, ...recipe }: Recipe): Record<string, unknown> {
  const kept = Object.entries(recipe).filter(([key]) => !FREE.has(key));
  const { peak, warmup } = learningRate ?? {}; // the decay is at the end, and may be moved there
  return { ...Object.fromEntries(kept), learningRate: { peak, warmup } };
}

/** JSON with the keys in order. */
function canonical(value: unknown): string | undefined {
  return JSON.stringify(value, (_, v) =>
    v && typeof v === "object" && !Array.isArray(v) ? Object.fromEntries(Object.entries(v).sort()) : v,
  );
}

/** The same for equal JSON, whatever the order of its keys. */
export function hashOf(value: unknown): string {
  return createHash("sha256").update(canonical(value)!).digest("hex").slice(0, 16);
}

/** What a run is; a checkpoint continues only under the same. */
export function fingerprint(recipe: Recipe): string {
  return hashOf(identity(recipe));
}

/** Fields in which runs differ. */
export function differences(a: Recipe, b: Recipe): string[] {
  const [first, second] = [identity(a), identity(b)];
  const keys = Object.keys({ ...first, ...second });
  return keys.filter((key) => canonical(first[key]) !== canonical(second[key]));
}
