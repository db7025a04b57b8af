/**
 * @file Text to image with an SDXL-family model. B batch, T text tokens, D text width, h w latent.
 */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { type Picture, readPlanes } from "../platform/index.ts";
import type { Device, Program } from "../runtime/index.ts";
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
import { type ComponentOptions, type Components, readComponents } from "./components.ts";
import { type SizeConditioning, sizesIn, timeIds } from "./conditioning.ts";
import { DEFAULT_WEIGHTING, type EncodeOptions, encodePrompts } from "./encode.ts";
import { type ModelInfo, modelInfo } from "./info.ts";
import { denormalizeLatents } from "./latents.ts";
import { GeneratedPicture } from "./picture.ts";
import { type LatentRgb, latentPicture, latentRgb } from "./preview.ts";
import { compileText, compileUNet, compileVae } from "./programs.ts";
import { eachRow, joinedPrompts, type Prompt, type PromptCache, promptCacheOf } from "./prompts.ts";
import { tiledDecode, tilesFor, type VaeTiling } from "./tiling.ts";

export interface LoadOptions extends ComponentOptions {
  /** Default "cpu". */
  device?: Device;
  /** Threads of a program; default all cores. */
  threads?: number;
  /** Prompts whose encoding is kept for the next time; default 0. */
  promptCache?: number;
  /** Called before each part is made ready. */
  onLoad?: (part: LoadedPart) => void;
}

export interface LoadedPart {
  name: "text encoders" | "UNet" | "VAE";
  /** From 0. */
  i: number;
  total: number;
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
  /** Default: the spacing of the model's scheduler. */
  schedule?: Schedule;
  /** Whether large pictures are decoded by tiles; default "auto", which is beyond 1.25·2²⁰ pixels. */
  vaeTiling?: VaeTiling;
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

/** Seconds of each part of the last call. */
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
  guidance: number;
  rescale: number;
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
  private readonly textProgram: Program;
  private readonly unetProgram: Program;
  private readonly vaeProgram: Program;
  private readonly known?: PromptCache;
  private latentRgb?: Promise<LatentRgb>;

  private constructor(
    parts: Components,
    [text, unetProgram, vae]: readonly [Program, Program, Program],
    promptCache: number,
  ) {
    this.parts = parts;
    if (promptCache > 0) this.known = promptCacheOf(promptCache);
    this.textProgram = text;
    this.unetProgram = unetProgram;
    this.vaeProgram = vae;
    this.info = modelInfo(parts);
  }

  /**
   * Loads a model folder in diffusers layout, a single-file checkpoint, or a model of the hub that was pulled
   * (`org/name`); by default the bundled model.
   * @throws one sentence when a component is missing or does not fit its config.
   */
  static async load(model = bundledModel(), options: LoadOptions = {}): Promise<SDXL> {
    const started = performance.now();
    const { device = "cpu", threads, promptCache = 0, onLoad, ...rest } = options;
    const parts = await readComponents(model, rest);
    const run = { device, threads };
    const loading = (name: LoadedPart["name"], i: number): void => onLoad?.({ name, i, total: 3 });
    loading("text encoders", 0);
    const text = await compileText(parts, run);
    loading("UNet", 1);
    const unet = await compileUNet(parts, run);
    loading("VAE", 2);
    const programs = [text, unet, await compileVae(parts, run)] as const;
    const sdxl = new SDXL(parts, programs, promptCache);
    sdxl.timings.load = (performance.now() - started) / 1000;
    return sdxl;
  }

  /** What these options and this prompt may get wrong, one sentence each. */
  warnings(options: GenerateOptions = {}, prompt = ""): string[] {
    const { steps, guidance, negativePrompt, promptWeighting } = this.settings(options);
    const { distilled } = this.info;
    const found: string[] = [];
    if (distilled !== undefined && steps !== distilled)
      found.push(`the model was distilled for ${distilled} steps; ${steps} will look worse`);
    if (distilled !== undefined && guidance > 2)
      found.push(`guidance ${guidance} is much for a distilled model; 1 is off, more than 2 distorts`);
    const [tokenizer] = this.parts.tokenizers;
    const room = `${tokenizer.capacity} tokens`;
    const limit = promptWeighting === "none" ? room : `${MOST_CHUNKS} chunks of ${room}`;
    if (chunkPrompt(tokenizer, prompt, promptWeighting).lost)
      found.push(`the prompt has more than ${limit}; what follows them is not read`);
    if (negativePrompt && guidance <= 1)
      found.push(`a negative prompt has no effect at guidance ${guidance}; it needs more than 1`);
    return found;
  }

  /** `batch` pictures of a prompt, or of each of several. */
  async textToImage(
    prompt: string | readonly string[],
    options: GenerateOptions = {},
  ): Promise<GeneratedPicture[]> {
    const steps = this.denoise(prompt, options);
    let next = await steps.next();
    for (; !next.done; next = await steps.next()) await options.onStep?.(next.value);
    const pictures = await this.decode(next.value, options.vaeTiling);
    const { batch, seed, negativePrompt, sampler, noiseRule, ...rest } = this.settings(options);
    return pictures.map(
      (picture, i) =>
        new GeneratedPicture(picture, {
          prompt: [prompt].flat()[Math.floor(i / batch)],
          negativePrompt,
          steps: rest.steps,
          guidance: rest.guidance,
          seed: noiseRule === "per-image" ? seedOf(seed, i) : seed,
          guidanceRescale: rest.guidanceRescale,
          sampler: sampler.title,
          schedule: scheduleTitle(rest.schedule),
          model: this.parts.name,
          promptWeighting: options.promptWeighting,
          clipSkip: options.clipSkip,
          vaeTiling: options.vaeTiling,
          ...sizesIn(options),
          loras: this.parts.loras.map(({ name, strength }) => ({ name, strength })),
        }),
    );
  }

  /** Yields after every step and returns the latents; leave the loop to cancel. */
  async *denoise(
    prompt: string | readonly string[],
    options: GenerateOptions = {},
  ): AsyncGenerator<DenoiseStep, FloatTensor> {
    const { steps, guidance, seed, noiseRule, negativePrompt, sampler, ...rest } = this.settings(options);
    const { batch: each, signal, schedule, guidanceRescale: rescale } = rest;
    const { width, height } = this.size(options);
    let started = performance.now();
    const prompts = [prompt].flat();
    const batch = prompts.length * each;
    const ids = timeIds(options, [height, width]);
    const told = (encoded: Prompt, timeIds: readonly number[]): Condition => ({
      ...encoded,
      timeIds: floats([batch, 6], Array.from({ length: batch }, () => timeIds).flat()),
    });
    const positive = told(eachRow(await this.encode(prompts, options), each), ids.positive);
    const encodeNegative = async (): Promise<Prompt> => {
      if (negativePrompt === "" && this.parts.zeroEmptyPrompt)
        return { hidden: floats(positive.hidden.shape), pooled: floats(positive.pooled.shape) };
      return eachRow(await this.encode([negativePrompt], { ...options, clipSkip: 0 }), batch);
    };
    const negative = guidance > 1 ? told(await encodeNegative(), ids.negative) : positive;
    this.timings.encode = (performance.now() - started) / 1000;

    const factor = this.info.vaeScaleFactor;
    const shape = [batch, this.parts.unet.in_channels, height / factor, width / factor];
    const plan = sampler.plan(this.parts.scheduler, steps, schedule);
    const noise = noiseStream({ seed, shape, rule: noiseRule });
    const x = floats(
      shape,
      noise().data.map((v) => v * plan.initNoiseSigma),
    );
    const network = (sample: FloatTensor, timestep: number) =>
      guidance > 1
        ? this.evaluateGuided(sample, timestep, { positive, negative, guidance, rescale })
        : this.evaluate(sample, timestep, positive);
    const denoise = parameterize(network, this.parts.scheduler.prediction_type, plan);
    const loop = sampler.sample(denoise, x, plan, noise);
    this.timings.denoise = 0;
    started = performance.now();
    for (let step = await loop.next(); ; step = await loop.next()) {
      this.timings.denoise += (performance.now() - started) / 1000;
      if (step.done) return step.value;
      signal?.throwIfAborted();
      const { i, denoised } = step.value;
      yield { i, total: steps, denoised, preview: () => this.preview(denoised) };
      started = performance.now();
    }
  }

  /** Pictures of latents [B,4,h,w]. */
  async decode(latents: FloatTensor, tiling: VaeTiling = "auto"): Promise<Picture[]> {
    const started = performance.now();
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
    this.timings.decode = (performance.now() - started) / 1000;
    return pictures;
  }

  /** Latents [B,4,h,w] → planes [B,3,H,W] around [−1,1]. */
  private async decodePlanes(latents: FloatTensor): Promise<FloatTensor> {
    const out = await this.vaeProgram.run({ latents: denormalizeLatents(this.parts.vae, latents) });
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
  async encode(prompts: readonly string[], options: EncodeOptions = {}): Promise<Prompt> {
    const { promptWeighting, clipSkip } = options;
    const encode = (some: readonly string[]): Promise<Prompt[]> =>
      encodePrompts(this.textProgram, this.parts, some, { promptWeighting, clipSkip });
    const way = JSON.stringify([promptWeighting, clipSkip]);
    const each = (some: readonly string[]) => this.known?.(some, encode, way) ?? encode(some);
    return joinedPrompts(await each(prompts), async () => (await each([""]))[0]);
  }

  private async evaluate(
    sample: FloatTensor,
    timestep: number,
    { hidden, pooled, timeIds }: Condition,
  ): Promise<FloatTensor> {
    const B = sample.shape[0];
    const out = await this.unetProgram.run({
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
    sample: FloatTensor,
    timestep: number,
    { positive, negative, guidance, rescale }: Guidance,
  ): Promise<FloatTensor> {
    if (negative.hidden.shape[1] !== positive.hidden.shape[1]) {
      const without = await this.evaluate(sample, timestep, negative);
      return guide(await this.evaluate(sample, timestep, positive), without, guidance, rescale);
    }
    const both = {
      hidden: joined(negative.hidden, positive.hidden),
      pooled: joined(negative.pooled, positive.pooled),
      timeIds: joined(negative.timeIds, positive.timeIds),
    };
    const out = await this.evaluate(joined(sample, sample), timestep, both);
    const n = sample.data.length;
    const half = (from: number) => floats(sample.shape, out.data.subarray(from, from + n));
    return guide(half(n), half(0), guidance, rescale);
  }

  /** Options with their defaults. */
  private settings(options: GenerateOptions) {
    const defaults = {
      batch: 1,
      seed: 0,
      noiseRule: "per-image" as const,
      guidanceRescale: 0,
      negativePrompt: "",
      promptWeighting: DEFAULT_WEIGHTING,
    };
    return { ...defaults, ...this.info.defaults, ...defined(options) };
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
    await Promise.all([this.textProgram, this.unetProgram, this.vaeProgram].map((p) => p.dispose()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
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
