/** @file From a recipe to a trained model: builds the job, runs it, writes the result in diffusers layout. */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import {
  contactSheet,
  type Dataset,
  latentCache,
  loadIcons,
  loadPictures,
  type Skipped,
} from "../data/index.ts";
import { clipTextConfig, type VaeConfig, vaeConfig, vaeScaleFactor } from "../models/index.ts";
import {
  copyComponent,
  copyTokenizer,
  latentStatistics,
  loadWeights,
  normalizeLatents,
  readConfig,
  readJson,
  readTokenizer,
  SDXL,
  SDXL_SCHEDULER,
  saveComponent,
  saveJson,
  saveModelIndex,
  saveTokenizer,
  weightsFile,
} from "../pipelines/index.ts";
import { atomicWrite } from "../platform/index.ts";
import { alphasCumprod, schedulerConfig } from "../samplers/index.ts";
import type { FloatTensor, HostTensor } from "../tensor/index.ts";
import { ClipTokenizer, trainBpe } from "../tokenizers/index.ts";
import { matchKeys, SafetensorsFile } from "../weights/index.ts";
import { fit, type Job, type Progress } from "./fit.ts";
import { adamw } from "./optimizer.ts";
import { trainedBy } from "./parallel.ts";
import { differences, fingerprint, type Recipe, type RecipeOf } from "./recipe.ts";
import { clipJob, encodeCaptions, latentEncoder, unetJob, vaeJob } from "./tasks.ts";

type Weights = Record<string, HostTensor>;

/** A job, and what becomes of its averaged weights. */
interface Task {
  job: Job;
  finish(weights: Weights): Promise<void>;
  /** Closes what batches are read from. */
  close?(): Promise<void>;
}

export interface TrainOptions {
  /** Saves a checkpoint and stops. */
  signal?: AbortSignal;
  /** Called with what is done before the first step. */
  onPrepare?: (what: string, done?: number, total?: number) => void;
  /** Called with the pictures that cannot be used. */
  onSkipped?: (skipped: readonly Skipped[]) => void;
  /** Processes that compute gradients side by side; default one per core, at most one per micro-batch. */
  replicas?: number;
}

/**
 * Trains what a recipe says, going on where `out` stopped; yields after every step.
 * `out` gets recipe.json with every default, checkpoint.safetensors, log.jsonl, TensorBoard events, sample grids and
 * at the end the components in diffusers layout.
 * @throws a sentence when data or components are missing, or `out` belongs to another recipe.
 */
export async function* train(recipe: Recipe, options: TrainOptions = {}): AsyncGenerator<Progress, void> {
  const { signal } = options;
  await refuseOtherRun(recipe);
  const onPrepare: TrainOptions["onPrepare"] = (...what) => {
    signal?.throwIfAborted(); // until the first step there is nothing to save
    options.onPrepare?.(...what);
  };
  const task = await prepare(recipe, { ...options, onPrepare });
  try {
    yield* run(recipe, task, { ...options, onPrepare });
  } finally {
    await task.close?.();
  }
}

async function* run(
  recipe: Recipe,
  { job, finish }: Task,
  { signal, onPrepare, replicas: most = availableParallelism() }: TrainOptions,
): AsyncGenerator<Progress, void> {
  if ("start" in recipe && job.start) {
    const needed = job.passes.flatMap((pass) => trainedBy(pass, job.frozen)).map((p) => [p.name, p.shape]);
    matchKeys(`start ${recipe.start}`, Object.fromEntries(needed), job.start);
  }
  await saveJson(join(recipe.out, "recipe.json"), recipe);
  const micro = recipe.batch / recipe.microBatch;
  const replicas = divisor(micro, most);
  onPrepare?.("building the training step");
  const weights = yield* fit(job, {
    ...recipe,
    optimizer: adamw(recipe.optimizer),
    accumulate: micro / replicas,
    replicas,
    fingerprint: fingerprint(recipe),
    signal,
  });
  if (!signal?.aborted) await finish(weights);
}

/** @throws when `out` is the run of another recipe, before anything in it is touched. */
async function refuseOtherRun(recipe: Recipe): Promise<void> {
  const { out } = recipe;
  const file = join(out, "checkpoint.safetensors");
  if (!existsSync(file)) return;
  await using checkpoint = await SafetensorsFile.open(file);
  if (checkpoint.metadata.fingerprint === fingerprint(recipe)) return;
  const other = (await readJson(join(out, "recipe.json")).catch(() => recipe)) as Recipe;
  const fields = differences(recipe, other);
  throw new Error(
    `${out} has the run of another recipe${fields.length > 0 ? ` (it differs in ${fields.join(", ")})` : ""}; ` +
      "give a new output folder, or the recipe it was made with",
  );
}

/** The largest divisor of n up to `most`. */
function divisor(n: number, most: number): number {
  let d = Math.min(n, most);
  while (n % d !== 0) d--;
  return d;
}

/** Opens the dataset: `step` is what the sides of pictures must be multiples of, `square` forbids other shapes. */
async function openData(
  { data, task }: Recipe,
  { step, square }: { step: number; square?: boolean },
  { onPrepare, onSkipped }: TrainOptions,
): Promise<Dataset> {
  onPrepare?.("reading the dataset");
  if (data.kind === "icons") {
    const icons = await loadIcons(data.folder, data.splits);
    if (icons.length === 0) throw new Error(`${data.folder}: no picture in ${data.splits.join(", ")}`);
    if (icons.size % step !== 0)
      throw new Error(
        `${data.folder}: pictures of ${icons.size} pixels; ${task} needs a multiple of ${step}`,
      );
    return icons;
  }
  const { path, size, convention, maxAspect } = data;
  if (square && maxAspect > 1) throw new Error(`data.maxAspect is ${maxAspect}; ${task} needs 1, squares`);
  if (size % step !== 0) throw new Error(`data.size is ${size}; ${task} needs a multiple of ${step}`);
  const pictures = await loadPictures({
    path,
    convention,
    size,
    step,
    maxAspect,
    onProgress: (done, total) => onPrepare?.("reading the dataset", done, total),
  });
  onSkipped?.(pictures.report.skipped);
  return pictures;
}

function prepare(recipe: Recipe, options: TrainOptions): Promise<Task> {
  if (recipe.task === "vae") return vaeTask(recipe, options);
  if (recipe.task === "clip") return clipTask(recipe, options);
  return unetTask(recipe, options);
}

async function vaeTask(recipe: RecipeOf<"vae">, options: TrainOptions): Promise<Task> {
  const { config, microBatch: batch, out, seed } = recipe;
  const data = await openData(recipe, { step: vaeScaleFactor(config) }, options);
  const start = recipe.start ? await loadWeights(recipe.start) : undefined;
  const isEncoder = (key: string) => key.startsWith("encoder.") || key.startsWith("quant_conv.");
  const frozen = recipe.freezeEncoder
    ? new Map(Object.entries(start!).filter(([key]) => isEncoder(key)))
    : undefined;
  const job = vaeJob(config, data, { ...recipe, batch, seed, out, frozen });
  return {
    job: { ...job, start },
    finish: async (weights) => {
      const all = { ...weights, ...Object.fromEntries(frozen ?? []) };
      // Latents are normalised per channel, so there is nothing left to scale.
      const stats = { scaling_factor: 1, ...(await statistics(config, all, data)) };
      await saveComponent(join(out, "vae"), "AutoencoderKL", { ...config, ...stats }, all, recipe.dtype);
    },
  };
}

/** Mean and deviation of a dataset's latents. */
async function statistics(
  config: VaeConfig,
  weights: Weights,
  data: Dataset,
): Promise<ReturnType<typeof latentStatistics>> {
  await using encoder = await latentEncoder(config, new Map(Object.entries(weights)));
  const all: FloatTensor[] = [];
  for (const { members } of data.buckets)
    for (let start = 0; start < members.length; start += 32)
      all.push(await encoder.encode(await data.pixels(members.slice(start, start + 32))));
  return latentStatistics(all);
}

async function clipTask(recipe: RecipeOf<"clip">, options: TrainOptions): Promise<Task> {
  const data = await openData(recipe, { step: recipe.image_encoder.patch_size, square: true }, options);
  const { out, maxLength, image_encoder: vision, microBatch: batch, seed, shift } = recipe;
  options.onPrepare?.("learning the vocabulary");
  const bpe = trainBpe(data.corpus(), recipe.vocabulary);
  await saveTokenizer(join(out, "tokenizer"), { ...bpe, maxLength });
  await saveTokenizer(join(out, "tokenizer_2"), { ...bpe, maxLength, pad: "!" });
  const tokenizers = {
    tokenizer: new ClipTokenizer({ ...bpe, maxLength }),
    tokenizer2: new ClipTokenizer({ ...bpe, maxLength, pad: "!" }),
  };
  const { start: bos_token_id, end: eos_token_id } = tokenizers.tokenizer;
  const text = (json: object) =>
    clipTextConfig({
      projection_dim: vision.projection_dim,
      ...json,
      vocab_size: Object.keys(bpe.vocab).length,
      max_position_embeddings: maxLength,
      bos_token_id,
      eos_token_id,
    });
  const configs = {
    textEncoder: text(recipe.text_encoder),
    textEncoder2: text(recipe.text_encoder_2),
    vision,
  };
  const parts = [
    ["text_encoder", "CLIPTextModel", configs.textEncoder],
    ["text_encoder_2", "CLIPTextModelWithProjection", configs.textEncoder2],
    ["image_encoder", "CLIPVisionModelWithProjection", vision],
  ] as const;
  return {
    job: clipJob(configs, data, { batch, seed, shift, tokenizers }),
    finish: async (weights) => {
      for (const [part, className, config] of parts)
        await saveComponent(join(out, part), className, config, under(weights, `${part}.`), recipe.dtype);
    },
  };
}

/** Entries below a prefix, without it. */
function under(weights: Weights, prefix: string): Weights {
  const entries = Object.entries(weights).filter(([k]) => k.startsWith(prefix));
  return Object.fromEntries(entries.map(([k, t]) => [k.slice(prefix.length), t]));
}

async function unetTask(recipe: RecipeOf<"unet">, options: TrainOptions): Promise<Task> {
  const { onPrepare = () => {} } = options;
  const { config, out, seed, microBatch: batch, captions, dropPrompt, minSnr, weighting } = recipe;
  const vae = await readConfig(join(recipe.vae, "config.json"), vaeConfig);
  const vaeFile = weightsFile(recipe.vae);
  const scaleFactor = vaeScaleFactor(vae);
  const step = scaleFactor * 2 ** (config.block_out_channels.length - 1);
  const data = await openData(recipe, { step }, options);
  onPrepare("encoding the pictures");
  await using encoder = await latentEncoder(vae, new Map(Object.entries(await loadWeights(recipe.vae))));
  const key = createHash("sha256")
    .update(await readFile(vaeFile))
    .digest("hex");
  const cache = await latentCache({
    dataset: data,
    encode: (pixels) => encoder.encode(pixels),
    key,
    folder: join(out, "latents"),
    batch: 16,
    onProgress: (done, total) => onPrepare("encoding the pictures", done, total),
  });
  onPrepare("encoding the captions");
  const text = {
    textEncoder: await readConfig(join(recipe.text, "text_encoder", "config.json"), clipTextConfig),
    textEncoder2: await readConfig(join(recipe.text, "text_encoder_2", "config.json"), clipTextConfig),
  };
  const textWeights = new Map<string, HostTensor>();
  for (const part of ["text_encoder", "text_encoder_2"])
    for (const [k, t] of Object.entries(await loadWeights(join(recipe.text, part))))
      textWeights.set(`${part}.${k}`, t);
  const tokenizers = {
    tokenizer: await readTokenizer(join(recipe.text, "tokenizer")),
    tokenizer2: await readTokenizer(join(recipe.text, "tokenizer_2")),
  };
  const bank = await encodeCaptions(text, textWeights, tokenizers, data, {
    perPicture: captions,
    seed: seed - 1,
  });

  const model = join(out, "model");
  const saveParts = async () => {
    for (const part of ["tokenizer", "tokenizer_2"])
      await copyTokenizer(join(recipe.text, part), join(model, part));
    for (const part of ["text_encoder", "text_encoder_2", "image_encoder"])
      await copyComponent(join(recipe.text, part), join(model, part), recipe.dtype);
    await copyComponent(recipe.vae, join(model, "vae"), recipe.dtype);
    await saveJson(join(model, "scheduler", "scheduler_config.json"), SDXL_SCHEDULER);
    await saveModelIndex(model, recipe.defaults);
  };
  await saveParts();
  const saveUNet = (weights: Weights) =>
    saveComponent(join(model, "unet"), "UNet2DConditionModel", config, weights, recipe.dtype);
  const latents = async (indices: readonly number[]) => normalizeLatents(vae, await cache.latents(indices));
  const job = unetJob(config, data, latents, bank, {
    batch,
    seed,
    dropPrompt,
    minSnr,
    weighting,
    scaleFactor,
    alphasCumprod: alphasCumprod(schedulerConfig(SDXL_SCHEDULER)),
    start: recipe.start ? await loadWeights(recipe.start) : undefined,
    preview: async (weights, step) => {
      await saveUNet(weights);
      await atomicWrite(join(out, `samples-${step}.png`), await sampleGrid(model, recipe.prompts));
    },
  });
  return { job, finish: saveUNet, close: async () => cache[Symbol.asyncDispose]() };
}

/** One picture of each prompt, always with the same seeds. */
async function sampleGrid(folder: string, prompts: readonly string[]): Promise<Buffer> {
  await using sdxl = await SDXL.load(folder, { threads: 1 });
  const pictures = [];
  for (const [seed, prompt] of prompts.entries()) {
    const [picture] = await sdxl.textToImage(prompt, { seed, steps: Math.min(16, sdxl.info.defaults.steps) });
    pictures.push({ ...picture, label: prompt });
  }
  return contactSheet(pictures, { columns: Math.min(8, prompts.length) });
}
