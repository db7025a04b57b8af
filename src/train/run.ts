/** @file From a recipe to a trained model: builds the job, runs it, writes the result in diffusers layout. */

import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { contactSheet, type Dataset } from "../data/index.ts";
import { clipTextConfig, type VaeConfig, vaeScaleFactor } from "../models/index.ts";
import {
  copyComponent,
  copyTokenizer,
  latentStatistics,
  loadWeights,
  readJson,
  replaceWeights,
  SDXL,
  SDXL_SCHEDULER,
  saveComponent,
  saveJson,
  saveModelIndex,
  saveTokenizer,
} from "../pipelines/index.ts";
import { atomicWrite } from "../platform/index.ts";
import { alphasCumprod, schedulerConfig } from "../samplers/index.ts";
import type { FloatTensor, HostTensor } from "../tensor/index.ts";
import { ClipTokenizer, trainBpe } from "../tokenizers/index.ts";
import { matchKeys, SafetensorsFile } from "../weights/index.ts";
import { fit, type Job, type Progress } from "./fit.ts";
import {
  type LatentPictures,
  type OpenOptions,
  openData,
  openLatents,
  openMaterial,
  readTextEncoders,
  type TextEncoders,
} from "./material.ts";
import { optimizerOf } from "./optimizer.ts";
import { replicasFor, trainedBy } from "./parallel.ts";
import { differences, fingerprint, type Recipe, type RecipeOf } from "./recipe.ts";
import {
  clipJob,
  encodedPrompts,
  latentEncoder,
  type PromptSource,
  trainedPrompts,
  unetJob,
  vaeJob,
} from "./tasks.ts";

type Weights = Record<string, HostTensor>;

/** A job, and what becomes of its averaged weights. */
interface Task {
  job: Job;
  finish(weights: Weights): Promise<void>;
  /** Closes what batches are read from. */
  close?(): Promise<void>;
}

export interface TrainOptions extends OpenOptions {
  /** Saves a checkpoint and stops. */
  signal?: AbortSignal;
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
  await saveJson(join(recipe.out, "recipe.json"), recipe);
  const micro = recipe.batch / recipe.microBatch;
  const replicas = replicasFor(micro, most);
  onPrepare?.("building the training step");
  const weights = yield* fit(job, {
    ...recipe,
    optimizer: optimizerOf(recipe.optimizer),
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

function prepare(recipe: Recipe, options: TrainOptions): Promise<Task> {
  if (recipe.task === "vae") return vaeTask(recipe, options);
  if (recipe.task === "clip") return clipTask(recipe, options);
  return unetTask(recipe, options);
}

async function vaeTask(recipe: RecipeOf<"vae">, options: TrainOptions): Promise<Task> {
  const { config, microBatch: batch, out, seed } = recipe;
  const data = await openData(recipe.data, { task: recipe.task, step: vaeScaleFactor(config) }, options);
  const start = recipe.start ? await loadWeights(recipe.start) : undefined;
  const isEncoder = (key: string) => key.startsWith("encoder.") || key.startsWith("quant_conv.");
  const frozen = recipe.freezeEncoder
    ? new Map(Object.entries(start!).filter(([key]) => isEncoder(key)))
    : undefined;
  const job = vaeJob(config, data, { ...recipe, batch, seed, out, frozen });
  if (start) {
    const needed = job.passes.flatMap((pass) => trainedBy(pass)).map((p) => [p.name, p.shape]);
    matchKeys(`start ${recipe.start}`, Object.fromEntries(needed), start);
  }
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
  const data = await openData(
    recipe.data,
    { task: recipe.task, step: recipe.image_encoder.patch_size, square: true },
    options,
  );
  const { out, maxLength, image_encoder: vision, microBatch: batch, seed, shift, agreement } = recipe;
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
    job: clipJob(configs, data, { batch, seed, shift, agreement, tokenizers }),
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
  const { config, out, seed, microBatch: batch, dropPrompt, minSnr, weighting, timestepBias, dtype } = recipe;
  const text = recipe.trainTextEncoders ? await readTextEncoders(recipe.text) : undefined;
  const { pictures, prompts } = await unetMaterial(recipe, text, options);
  const { data, latents, scaleFactor } = pictures;

  const model = join(out, "model");
  await saveParts(recipe, model);
  const saveNetworks = async (weights: Weights) => {
    const all = { ...text?.weights, ...weights };
    for (const part of text ? TEXT_ENCODERS : [])
      await replaceWeights(join(model, part), under(all, `${part}.`), dtype);
    await saveComponent(join(model, "unet"), "UNet2DConditionModel", config, unetWeights(weights), dtype);
  };
  const job = unetJob(config, data, latents, prompts, {
    batch,
    seed,
    dropPrompt,
    minSnr,
    weighting,
    timestepBias,
    scaleFactor,
    alphasCumprod: alphasCumprod(schedulerConfig(SDXL_SCHEDULER)),
    preview: async (weights, step) => {
      await saveNetworks(weights);
      if (recipe.prompts.length > 0)
        await atomicWrite(join(out, `samples-${step}.png`), await sampleGrid(model, recipe.prompts));
    },
  });
  const needed = job.passes.flatMap((pass) => trainedBy(pass));
  const start = { ...text?.weights, ...(recipe.start ? await loadWeights(recipe.start) : {}) };
  if (recipe.start) {
    const shapes = Object.fromEntries(needed.map((p) => [p.name, p.shape]));
    matchKeys(`start ${recipe.start}`, unetWeights(shapes), unetWeights(start));
  }
  return { job: { ...job, start }, finish: saveNetworks, close: pictures.close };
}

/** Pictures, with captions for the encoders that are trained or encoded by those that stay. */
async function unetMaterial(
  recipe: RecipeOf<"unet">,
  trained: TextEncoders | undefined,
  options: TrainOptions,
): Promise<{ pictures: LatentPictures; prompts: PromptSource }> {
  if (trained) {
    const pictures = await openLatents(recipe, recipe.config, options);
    return { pictures, prompts: trainedPrompts(pictures.data, trained.configs, trained.tokenizers) };
  }
  const material = await openMaterial(recipe, recipe.config, options);
  return { pictures: material, prompts: encodedPrompts(material.data, material.bank) };
}

const TEXT_ENCODERS = ["text_encoder", "text_encoder_2"] as const;
/** Folder in a model of the towers that judge it. */
const JUDGE = "judge";

/** Entries of the UNet, whose keys have no prefix. */
function unetWeights<T>(weights: Record<string, T>): Record<string, T> {
  const entries = Object.entries(weights);
  return Object.fromEntries(entries.filter(([k]) => !TEXT_ENCODERS.some((part) => k.startsWith(`${part}.`))));
}

/** The parts of a model that come from elsewhere, and what judges its pictures. */
async function saveParts(recipe: RecipeOf<"unet">, model: string): Promise<void> {
  const { text, vae, dtype, defaults } = recipe;
  const ownJudge = join(text, JUDGE);
  const judge = recipe.judge ?? (existsSync(ownJudge) ? ownJudge : text);
  for (const part of ["tokenizer", "tokenizer_2"]) await copyTokenizer(join(text, part), join(model, part));
  const goesOn = recipe.trainTextEncoders && existsSync(join(recipe.out, "checkpoint.safetensors"));
  for (const part of TEXT_ENCODERS) {
    if (goesOn && existsSync(join(model, part, "model.safetensors"))) continue; // trained already
    await copyComponent(join(text, part), join(model, part), dtype);
  }
  await copyTokenizer(join(judge, "tokenizer_2"), join(model, JUDGE, "tokenizer_2"));
  for (const part of ["text_encoder_2", "image_encoder"])
    await copyComponent(join(judge, part), join(model, JUDGE, part), dtype);
  await copyComponent(vae, join(model, "vae"), dtype);
  await saveJson(join(model, "scheduler", "scheduler_config.json"), SDXL_SCHEDULER);
  await saveModelIndex(model, defaults);
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
