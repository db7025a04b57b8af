/**
 * @file Text to image with an SDXL-family model. B batch, T text tokens, D text width, h w latent.
 */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { availableMemory, type Picture, readPlanes } from "../platform/index.ts";
import {
  guide,
  type NoiseRule,
  noiseStream,
  parameterize,
  type Sampler,
  type Schedule,
  scheduleTitle,
  seedOf,
} from "../samplers/index.ts";
import { type FloatTensor, floats } from "../tensor/index.ts";
import { chunkPrompt, MOST_CHUNKS } from "../tokenizers/index.ts";
import { type LoadedLora, strengthOn } from "./adapters.ts";
import {
  addLoras,
  type ComponentOptions,
  type Components,
  findLoras,
  type Loras,
  readComponents,
} from "./components.ts";
import { type SizeConditioning, sizesIn, timeIds } from "./conditioning.ts";
import { DEFAULT_WEIGHTING, type EncodeOptions, encodePrompts } from "./encode.ts";
import { type ModelInfo, modelInfo } from "./info.ts";
import { denormalizeLatents } from "./latents.ts";
import type { LazyProgram } from "./layout.ts";
import { LoraLibrary } from "./library.ts";
import { addedStrengths, loraTags, promptLoras } from "./lora_tags.ts";
import { checkMemory, type MemoryPlan, type MemoryPlanner, memoryPlanner, type PlanSize } from "./memory.ts";
import { type LoadedPart, Networks } from "./networks.ts";
import { checkOptions } from "./options.ts";
import { GeneratedPicture } from "./picture.ts";
import type { PrecisionOptions } from "./precision.ts";
import { type LatentRgb, latentPicture, latentRgb } from "./preview.ts";
import type { Run } from "./programs.ts";
import { eachRow, joinedPrompts, type Prompt, type PromptCache, promptCacheOf } from "./prompts.ts";
import { tiledDecode, tilesFor, type VaeTiling } from "./tiling.ts";

export interface LoadOptions extends ComponentOptions, PrecisionOptions {
  /** Bytes that may be used; default what is free. Counts on the CPU alone. */
  memoryLimit?: number;
  /** Most threads of a program; default all cores. Small networks take two at most. */
  threads?: number;
  /** Pictures at a time that threads are chosen for; default 1. */
  expectedBatch?: number;
  /** Prompts whose encoding is kept for the next time; default 16. */
  promptCache?: number;
  /** Called before a network is loaded, which may be again where networks take turns in memory. */
  onLoad?: (part: LoadedPart) => void;
  /** Folder of adapters that prompts may name: `<lora:name:0.8>` is `name.safetensors` in it or below. */
  loraFolder?: string;
}

export interface GenerateOptions extends EncodeOptions, SizeConditioning {
  /** Of the sampler. Each evaluates the network once, those of Heun but the last twice. Default: the model's. */
  steps?: number;
  /** Classifier-free guidance (Ho & Salimans 2022); up to 1 it is off. Default: the model's. */
  guidance?: number;
  /** φ of Lin et al. 2024: how far guidance leaves contrast as it was, 0 (default) to 1. */
  guidanceRescale?: number;
  /** Default "": zeros where the model was trained with them. Has no effect without guidance. */
  negativePrompt?: string;
  /** Of torch's CPU generator, 0 to 2⁶⁴ − 1. Default 0. */
  seed?: number | bigint;
  /** Default 1. */
  batch?: number;
  /** Whether picture i takes seed + i, or how all come from one seed. Default "per-image". */
  noiseRule?: NoiseRule;
  /** Pixels; default the model's size. */
  width?: number;
  height?: number;
  /** Default: the model's. */
  sampler?: Sampler;
  /** Default: the model's. */
  schedule?: Schedule;
  /** Whether large pictures are decoded by tiles; default "auto", which is beyond 1.25·2²⁰ pixels. */
  vaeTiling?: VaeTiling;
  /** Adapters on these pictures alone, beside those that were loaded; neither other ones nor other strengths load the model again. */
  loras?: Loras;
  /** Stops between steps. */
  signal?: AbortSignal;
  /** Called after each step; the next one waits for it, and none follows when it throws. */
  onStep?: (step: DenoiseStep) => void | Promise<void>;
}

export interface DenoiseStep {
  /** From 0. */
  i: number;
  total: number;
  /** The sampler's estimate of the clean latents, [B,4,h,w]. */
  denoised: FloatTensor;
  /** What the first picture would be if they were so; see `SDXL.preview`. */
  preview(): Promise<Picture>;
}

/** How a preview is made: by the VAE, or pixel for latent position by a linear map; "auto" decodes small ones. */
export type PreviewMethod = "auto" | "vae" | "latent2rgb";

/** Pixels of pictures that previews are decoded of. */
const SMALL = 2 ** 14;

/** Seconds of each part of the last call; `load` of all loading since the model was opened, which the others leave out. */
export interface Timings {
  load: number;
  encode: number;
  denoise: number;
  decode: number;
}

/** What the UNet is told besides the latents. */
interface Condition extends Prompt {
  timeIds: FloatTensor; // [B,6]
}

interface Guidance {
  positive: Condition;
  negative: Condition;
  /** Negative and positive in one batch, where they have the same length. */
  both?: Condition;
  guidance: number;
  rescale: number;
}

/** What pictures are made of: prompts without tags, the model with its adapters, and those that are new. */
interface Wish {
  prompts: readonly string[];
  parts: Components;
  loras: readonly LoadedLora[];
}

/** One picture as the model is used to. */
function usualSize(parts: Components): PlanSize {
  const { sampleSize, vaeScaleFactor } = modelInfo(parts);
  const side = sampleSize * vaeScaleFactor;
  return { width: side, height: side, batch: 1, rows: 1, tiling: "auto" };
}

/** Folder of the model that comes with the package. */
export function bundledModel(): string {
  const here = new URL(".", import.meta.url);
  const folder = [new URL("../../models/fewstep", here)]
    .map((u) => fileURLToPath(u))
    .find((p) => existsSync(p));
  if (!folder)
    throw new Error(
      "the bundled model is missing from this installation; install fewstep again or name a model folder",
    );
  return folder;
}

/** An SDXL-family model, ready to run. Free it with `dispose` (or `await using`). */
export class SDXL implements AsyncDisposable {
  readonly info: ModelInfo;
  readonly timings: Timings = { load: 0, encode: 0, denoise: 0, decode: 0 };
  private readonly parts: Components;
  private readonly library: LoraLibrary;
  private readonly loraFolder?: string;
  private readonly networks: Networks;
  private readonly known?: PromptCache;
  private latentRgb?: Promise<LatentRgb>;
  private readonly plan: MemoryPlanner;
  private readonly fixedWarnings: readonly string[];
  /** Of the last pictures. */
  private last: Wish;

  private constructor(
    parts: Components,
    fixed: readonly LoadedLora[],
    library: LoraLibrary,
    plan: MemoryPlanner,
    run: Run,
    { promptCache = 16, loraFolder, onLoad }: Pick<LoadOptions, "promptCache" | "loraFolder" | "onLoad">,
  ) {
    this.plan = plan;
    this.parts = parts;
    this.loraFolder = loraFolder;
    this.library = library;
    this.last = { prompts: [], parts, loras: [] };
    this.fixedWarnings = [...parts.contradictions, ...fixed.flatMap(({ warnings }) => warnings)];
    if (promptCache > 0) this.known = promptCacheOf(promptCache);
    const onLoaded = (seconds: number): void => {
      this.timings.load += seconds;
    };
    this.networks = new Networks(parts, { fixed, run, plan, onLoad, onLoaded });
    this.info = modelInfo(parts);
  }

  /**
   * Loads a model folder in diffusers layout, a single-file checkpoint, or a model of the hub that was pulled
   * (`org/name`); by default the bundled model. Where memory is short, its networks are loaded when it is their turn.
   * @throws one sentence when a component is missing or does not fit its config, or memory is short for one network.
   */
  static async load(model = bundledModel(), options: LoadOptions = {}): Promise<SDXL> {
    const started = performance.now();
    const { device = "cpu", threads, memoryLimit, ...rest } = options;
    const { precision, large, choices, onNotice, expectedBatch } = rest;
    const parts = await readComponents(model, rest);
    const library = new LoraLibrary(parts);
    const fixed = await Promise.all(parts.loras.map((lora) => library.place(lora)));
    const run = { device, threads, precision, large, choices, onNotice, expectedBatch };
    const available = device === "cpu" ? (memoryLimit ?? availableMemory()) : undefined;
    const plan = await memoryPlanner(parts, run, available);
    const size = usualSize(parts);
    checkMemory(plan(size), "loading", `loading ${parts.name}`);
    const sdxl = new SDXL(parts, fixed, library, plan, run, rest);
    await sdxl.networks.load(size);
    sdxl.timings.load = (performance.now() - started) / 1000;
    return sdxl;
  }

  /** What memory pictures of some size take, estimated. */
  memoryPlan(options: GenerateOptions = {}): MemoryPlan {
    return this.plan(this.planSize(options));
  }

  private planSize(options: GenerateOptions): PlanSize {
    const { batch, guidance } = this.settings(options, this.parts);
    const { vaeTiling: tiling = "auto" } = options;
    return { ...this.size(options), batch, rows: guidance > 1 ? 2 * batch : batch, tiling };
  }

  /** What these options and this prompt may get wrong, one sentence each; with the adapters of the last pictures. */
  warnings(options: GenerateOptions = {}, prompt = ""): string[] {
    const { parts, loras } = this.last;
    const { steps, guidance, negativePrompt, promptWeighting } = this.settings(options, parts);
    const { distilled } = parts;
    const found = [...this.fixedWarnings, ...loras.flatMap(({ warnings }) => warnings)];
    if (distilled !== undefined && steps !== distilled)
      found.push(
        `the model was distilled for ${distilled} step${distilled === 1 ? "" : "s"}; ${steps} will look worse`,
      );
    if (distilled !== undefined && guidance > 2)
      found.push(`guidance ${guidance} is much for a distilled model; 1 is off, more than 2 distorts`);
    const [tokenizer] = this.parts.tokenizers;
    const room = `${tokenizer.capacity} tokens`;
    const limit = promptWeighting === "none" ? room : `${MOST_CHUNKS} chunks of ${room}`;
    const texts = { prompt: loraTags(prompt).text, "negative prompt": guidance > 1 ? negativePrompt : "" };
    for (const [name, text] of Object.entries(texts))
      if (chunkPrompt(tokenizer, text, promptWeighting).lost)
        found.push(`the ${name} has more than ${limit}; what follows them is not read`);
    if (negativePrompt && guidance <= 1)
      found.push(`a negative prompt has no effect at guidance ${guidance}; it needs more than 1`);
    return found;
  }

  /** `batch` pictures of a prompt, or of each of several. */
  async textToImage(
    prompt: string | readonly string[],
    options: GenerateOptions = {},
  ): Promise<GeneratedPicture[]> {
    const wish = await this.wish(prompt, options);
    const steps = this.denoiseWish(wish, options);
    let next = await steps.next();
    for (; !next.done; next = await steps.next()) await options.onStep?.(next.value);
    const pictures = await this.decode(next.value, options.vaeTiling);
    const { parts, prompts } = wish;
    const { batch, seed, negativePrompt, sampler, noiseRule, ...rest } = this.settings(options, parts);
    return pictures.map(
      (picture, i) =>
        new GeneratedPicture(picture, {
          prompt: prompts[Math.floor(i / batch)],
          negativePrompt,
          steps: rest.steps,
          guidance: rest.guidance,
          seed: noiseRule === "per-image" ? seedOf(seed, i) : seed,
          guidanceRescale: rest.guidanceRescale,
          sampler: sampler.title,
          schedule: scheduleTitle(rest.schedule),
          model: parts.name,
          promptWeighting: options.promptWeighting,
          clipSkip: options.clipSkip,
          vaeTiling: options.vaeTiling,
          ...sizesIn(options),
          loras: parts.loras.map(({ name, strength, textStrength }) => ({
            name,
            strength,
            ...(textStrength === strength ? {} : { textStrength }),
          })),
        }),
    );
  }

  /** Yields after every step and returns the latents; leave the loop to cancel. */
  async *denoise(
    prompt: string | readonly string[],
    options: GenerateOptions = {},
  ): AsyncGenerator<DenoiseStep, FloatTensor> {
    return yield* this.denoiseWish(await this.wish(prompt, options), options);
  }

  private async *denoiseWish(
    { prompts, parts, loras }: Wish,
    options: GenerateOptions,
  ): AsyncGenerator<DenoiseStep, FloatTensor> {
    const settings = this.settings(options, parts);
    const { steps, guidance, seed, noiseRule, negativePrompt, sampler, ...rest } = settings;
    const { batch: each, signal, schedule, guidanceRescale: rescale } = rest;
    const { width, height } = this.size(options);
    const encoding = this.stopwatch();
    const batch = prompts.length * each;
    const planned = this.planSize({ ...options, batch });
    checkMemory(this.plan(planned), "drawing", `a picture of ${width}×${height}`);
    const ids = timeIds(options, [height, width]);
    const told = (encoded: Prompt, timeIds: readonly number[]): Condition => ({
      ...encoded,
      timeIds: floats([batch, 6], Array.from({ length: batch }, () => timeIds).flat()),
    });
    const positive = told(eachRow(await this.encode(prompts, options, loras), each), ids.positive);
    const encodeNegative = async (): Promise<Prompt> => {
      if (negativePrompt === "" && this.parts.zeroEmptyPrompt)
        return { hidden: floats(positive.hidden.shape), pooled: floats(positive.pooled.shape) };
      return eachRow(await this.encode([negativePrompt], { ...options, clipSkip: 0 }, loras), batch);
    };
    const negative = guidance > 1 ? told(await encodeNegative(), ids.negative) : positive;
    this.timings.encode = encoding();

    const factor = this.info.vaeScaleFactor;
    const shape = [batch, this.parts.unet.in_channels, height / factor, width / factor];
    const plan = sampler.plan(parts.scheduler, steps, schedule);
    const noise = noiseStream({ seed, shape, rule: noiseRule });
    const x = floats(
      shape,
      noise().data.map((v) => v * plan.initNoiseSigma),
    );
    const unet = this.networks.use("UNet", planned, loras);
    const guided = {
      positive,
      negative,
      both: guidance > 1 ? joinedConditions(negative, positive) : undefined,
      guidance,
      rescale,
    };
    const network = (sample: FloatTensor, timestep: number) =>
      guidance > 1
        ? this.evaluateGuided(unet, sample, timestep, guided)
        : this.evaluate(unet, sample, timestep, positive);
    const denoise = parameterize(network, parts.scheduler.prediction_type, plan);
    const loop = sampler.sample(denoise, x, plan, noise);
    this.timings.denoise = 0;
    let stepping = this.stopwatch();
    for (let step = await loop.next(); ; step = await loop.next()) {
      this.timings.denoise += stepping();
      if (step.done) return step.value;
      checkFinite(step.value.denoised, `the UNet of ${this.parts.name}`);
      signal?.throwIfAborted();
      const { i, denoised } = step.value;
      yield { i, total: steps, denoised, preview: () => this.preview(denoised) };
      stepping = this.stopwatch();
    }
  }

  /** A function that gives the seconds since now, without those of loading. */
  private stopwatch(): () => number {
    const [started, loading] = [performance.now(), this.timings.load];
    return () => (performance.now() - started) / 1000 - (this.timings.load - loading);
  }

  /** Pictures of latents [B,4,h,w]. */
  async decode(latents: FloatTensor, tiling: VaeTiling = "auto"): Promise<Picture[]> {
    const decoding = this.stopwatch();
    const [B, C, h, w] = latents.shape;
    const tiles = tilesFor(this.parts.vae, [h, w], tiling);
    const all = tiles ? undefined : await this.decodePlanes(latents);
    const pictures: Picture[] = [];
    for (let b = 0; b < B; b++) {
      const n = C * h * w;
      const one = (): FloatTensor => floats([1, C, h, w], latents.data.subarray(b * n, (b + 1) * n));
      const planes = all ?? (await tiledDecode((tile) => this.decodePlanes(tile), one(), tiles!));
      const [, , height, width] = planes.shape;
      const from = all ? b * 3 * height * width : 0;
      const data = readPlanes(planes.data.subarray(from, from + 3 * height * width));
      pictures.push({ width, height, data });
    }
    this.timings.decode = decoding();
    return pictures;
  }

  /** Latents [B,4,h,w] → planes [B,3,H,W] around [−1,1]. */
  private async decodePlanes(latents: FloatTensor): Promise<FloatTensor> {
    const { vae, name } = this.parts;
    const [B, , h, w] = latents.shape;
    const size = { width: w * vae.factor, height: h * vae.factor, batch: B, rows: B, tiling: "off" } as const;
    const program = this.networks.use("VAE decoder", size);
    const out = await program.run({ latents: denormalizeLatents(vae.scaling, latents) });
    checkFinite(out.pictures as FloatTensor, `the VAE of ${name}`);
    return out.pictures as FloatTensor;
  }

  /** A picture of the first of latents [B,4,h,w]: of full size from the VAE, or one pixel for each position. */
  async preview(latents: FloatTensor, method: PreviewMethod = "auto"): Promise<Picture> {
    const [, C, h, w] = latents.shape;
    const small = h * w * this.info.vaeScaleFactor ** 2 <= SMALL;
    if (method === "vae" || (method === "auto" && small)) {
      const [picture] = await this.decode(floats([1, C, h, w], latents.data.slice(0, C * h * w)));
      return picture;
    }
    this.latentRgb ??= latentRgb(this.parts.vae, (some) => this.decodePlanes(some));
    return latentPicture(latents, await this.latentRgb);
  }

  /** Text encoders' outputs for some prompts, all with as many tokens as the longest of them. */
  async encode(
    prompts: readonly string[],
    { promptWeighting, clipSkip }: EncodeOptions = {},
    loras: readonly LoadedLora[] = [],
  ): Promise<Prompt> {
    const encode = async (some: readonly string[]): Promise<Prompt[]> => {
      const size = { ...usualSize(this.parts), batch: some.length };
      const program = this.networks.use("text encoders", size, loras);
      const encoded = await encodePrompts(program, this.parts, some, { promptWeighting, clipSkip });
      for (const t of encoded.flatMap(({ hidden, pooled }) => [hidden, pooled]))
        checkFinite(t, `a text encoder of ${this.parts.name}`);
      return encoded;
    };
    const adapters = loras
      .filter((lora) => lora.deltas.text.size > 0 && strengthOn("text", lora) !== 0)
      .map((lora) => [lora.version, strengthOn("text", lora)]);
    const way = JSON.stringify([promptWeighting, clipSkip, ...adapters]);
    const each = (some: readonly string[]) => this.known?.(some, encode, way) ?? encode(some);
    return joinedPrompts(await each(prompts), async () => (await each([""]))[0]);
  }

  private async evaluate(
    unet: LazyProgram,
    sample: FloatTensor,
    timestep: number,
    { hidden, pooled, timeIds }: Condition,
  ): Promise<FloatTensor> {
    const B = sample.shape[0];
    const out = await unet.run({
      sample,
      timestep: floats([B], new Float32Array(B).fill(timestep)),
      hidden,
      pooled,
      time_ids: timeIds,
    });
    return out.prediction as FloatTensor;
  }

  /** With and without the prompt in one batch, or one after the other where they differ in length. */
  private async evaluateGuided(
    unet: LazyProgram,
    sample: FloatTensor,
    timestep: number,
    { positive, negative, both, guidance, rescale }: Guidance,
  ): Promise<FloatTensor> {
    if (!both) {
      const without = await this.evaluate(unet, sample, timestep, negative);
      return guide(await this.evaluate(unet, sample, timestep, positive), without, guidance, rescale);
    }
    const out = await this.evaluate(unet, joined(sample, sample), timestep, both);
    const n = sample.data.length;
    const half = (from: number) => floats(sample.shape, out.data.subarray(from, from + n));
    return guide(half(n), half(0), guidance, rescale);
  }

  /** Reads the prompts' tags, and the adapters that they and the options ask for. */
  private async wish(prompt: string | readonly string[], options: GenerateOptions): Promise<Wish> {
    checkOptions([prompt].flat(), options);
    const { prompts, loras: named } = await promptLoras([prompt].flat(), this.loraFolder);
    const found = await findLoras(addedStrengths(options.loras ?? {}, named));
    const loras = await Promise.all(found.map((lora) => this.library.load(lora)));
    const parts = found.length > 0 ? await addLoras(this.parts, found) : this.parts;
    this.last = { prompts, parts, loras };
    return this.last;
  }

  /** Options with their defaults. */
  private settings(options: GenerateOptions, parts: Components) {
    const defaults = {
      batch: 1,
      seed: 0,
      noiseRule: "per-image" as const,
      guidanceRescale: 0,
      negativePrompt: "",
      promptWeighting: DEFAULT_WEIGHTING,
    };
    return { ...defaults, ...modelInfo(parts).defaults, ...defined(options) };
  }

  private size({ width, height }: GenerateOptions): { width: number; height: number } {
    const { sampleSize, vaeScaleFactor: factor } = this.info;
    const size = { width: width ?? sampleSize * factor, height: height ?? sampleSize * factor };
    for (const side of [size.width, size.height])
      if (!Number.isInteger(side / factor) || side < factor)
        throw new Error(
          `size ${size.width}×${size.height}: both sides must be positive multiples of ${factor}`,
        );
    return size;
  }

  async dispose(): Promise<void> {
    await this.networks[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

/** @throws a sentence that names what computed the values, when some are no numbers. */
function checkFinite({ data }: FloatTensor, what: string): void {
  if (data.every(Number.isFinite)) return;
  throw new Error(
    `${what} computed values that are no numbers: its weights are damaged, or too large for half precision; ` +
      "use another file of them",
  );
}

/** Two conditions in one batch; undefined where their texts differ in length. */
function joinedConditions(a: Condition, b: Condition): Condition | undefined {
  if (a.hidden.shape[1] !== b.hidden.shape[1]) return undefined;
  return {
    hidden: joined(a.hidden, b.hidden),
    pooled: joined(a.pooled, b.pooled),
    timeIds: joined(a.timeIds, b.timeIds),
  };
}

/** Two tensors one after the other, along the first axis. */
function joined(a: FloatTensor, b: FloatTensor): FloatTensor {
  const data = new Float32Array(a.data.length + b.data.length);
  data.set(a.data);
  data.set(b.data, a.data.length);
  return floats([a.shape[0] + b.shape[0], ...a.shape.slice(1)], data);
}

/** Options without the undefined ones, so that defaults apply. */
function defined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, v]) => v !== undefined)) as T;
}
