/** @file One phase of a distillation as a job: its passes, and the batches that they are fed. */

import { type BatchPlace, type Bucket, batchSampler } from "../data/index.ts";
import type { DiscriminatorHeads, UNetConfig } from "../models/index.ts";
import { type Adapter, loraScope, rootScope } from "../nn/index.ts";
import { boundaryScalings, type PredictionType } from "../samplers/index.ts";
import { type FloatTensor, floats, type Generator, type HostTensor } from "../tensor/index.ts";
import {
  batchGenerator,
  captionFeeds,
  conditionFeeds,
  type Job,
  type Material,
  type Pass,
  trainedBy,
  type UNetBatch,
} from "../train/index.ts";
import { lcmPasses } from "./lcm.ts";
import { adversarialPasses, DISCRIMINATOR, ENCODER, msePasses, type Setting } from "./lightning.ts";
import { type Paths, walkPaths } from "./paths.ts";
import { type DistillRecipe, isAdversarial, type Phase, type Stage } from "./recipe.ts";

type Weights = Readonly<Record<string, HostTensor>>;

/** Modules that a LoRA adapts (§3.6): all but the first and last convolution and the shared time embedding. */
const ADAPTED =
  /(^|\.)(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv[12]|conv_shortcut|(down|up)samplers\.0\.conv|time_emb_proj)$/;

/** A LoRA of one rank on the modules of the paper. */
function lightningAdapter(rank: number, scale: number): Adapter {
  return { rank: (path) => (ADAPTED.test(path) ? rank : undefined), scale: () => scale };
}

/** A network as a phase takes it. */
export interface Participant {
  weights: Weights;
  prediction: PredictionType;
}

export interface PhaseOptions {
  config: UNetConfig;
  stage: Stage;
  phase: Phase;
  material: Material;
  /** ᾱ of every timestep. */
  alphas: Float32Array;
  teacher: Participant;
  /** Of the whole network, or of the LoRA (none: a fresh one). */
  student: Participant;
  /** Weights that a LoRA adapts; also what the discriminator starts as. */
  base: Weights;
  /** The discriminator that goes on here; what it lacks starts anew. */
  discriminator: Weights;
  loraScale: number;
  discriminatorHeads: DiscriminatorHeads;
  discriminatorEncoder: DistillRecipe["discriminatorEncoder"];
  microBatch: number;
  seed: number;
  zeroEmptyPrompt: boolean;
  /** Where the student starts from instead of noised pictures. */
  paths?: Paths;
}

/** Steps of the teacher for one of the student. */
function teacherSteps({ from, to }: Stage, { objective, teacher = from }: Phase): number {
  return objective === "convert" || objective === "lcm" ? 1 : teacher / to;
}

/** Who takes part in a phase and how, whatever its batches. A teacher that skips levels needs no guidance. */
export function phaseSetting(
  stage: Stage,
  phase: Phase,
  {
    student,
    teacher,
    loraScale,
  }: Pick<PhaseOptions, "loraScale"> & Record<"student" | "teacher", Pick<Participant, "prediction">>,
): Omit<Setting, "config" | "batch"> {
  const root = rootScope();
  const scope = phase.lora ? loraScope(root, lightningAdapter(phase.lora, loraScale)) : root;
  const { teacher: from = stage.from } = phase;
  return {
    student: { scope, prediction: student.prediction },
    teacher: { scope: rootScope("teacher"), prediction: teacher.prediction },
    steps: teacherSteps(stage, phase),
    guidance: from === stage.from ? stage.guidance : 1,
  };
}

/** The passes of an objective. */
export function passesOf(
  setting: Setting,
  { objective, renoise, discriminatorRate, discriminatorAlone }: Phase,
  heads: DiscriminatorHeads,
): Pass[] {
  if (objective === "lcm") return lcmPasses(setting);
  if (objective === "mse" || objective === "convert") return msePasses(setting);
  return adversarialPasses(setting, {
    conditional: objective === "conditional",
    renoise: renoise !== undefined,
    heads,
    rate: discriminatorRate,
    alone: discriminatorAlone,
  });
}

/** Sizes of a micro-batch of one bucket. */
function batchOf(
  { material: { bank, scaleFactor }, microBatch }: Pick<PhaseOptions, "material" | "microBatch">,
  { height, width }: Bucket,
): UNetBatch {
  const [h, w] = [height / scaleFactor, width / scaleFactor];
  return { batch: microBatch, height: h, width: w, tokens: bank.tokens, pooled: bank.pooledSize };
}

/** The job of a phase. `preview` and `start` for keys that it does not know are left to the caller. */
export function phaseJob(options: PhaseOptions): Job {
  const { config, stage, phase, material, teacher, student, base, discriminator, microBatch } = options;
  const { data, latents } = material;
  const { paths } = options;
  const setting = phaseSetting(stage, phase, options);
  const [passes, ...variants] = data.buckets.map((bucket) =>
    passesOf({ ...setting, config, batch: batchOf(options, bucket) }, phase, options.discriminatorHeads),
  );
  const frozen = new Map<string, HostTensor>();
  const freeze = (weights: Weights, prefix = "") => {
    for (const [k, t] of Object.entries(weights)) frozen.set(`${prefix}${k}`, t);
  };
  freeze(teacher.weights, "teacher.");
  if (phase.lora) freeze(base);
  if (phase.discriminatorAlone) freeze(student.weights);
  if (isAdversarial(phase) && options.discriminatorEncoder === "frozen") freeze(base, ENCODER);
  const sampler = batchSampler({
    members: paths?.members ?? data.buckets.map((b) => b.members),
    batch: microBatch,
    seed: options.seed,
  });
  const empty = setting.guidance > 1 ? emptyPrompt(options) : {};
  return {
    passes,
    variants,
    frozen,
    batch: microBatch,
    start: { ...discriminatorStart(passes, base, discriminator), ...student.weights },
    feeds: async (at) => {
      const { indices } = sampler.at(at);
      const random = generator(options, at);
      if (paths)
        return {
          ...pathFeeds(await paths.latents(indices), options, random),
          ...captionFeeds(
            material,
            indices.map((path) => paths.captions[path]),
          ),
          ...empty,
        };
      return {
        ...noisedFeeds(await latents(indices), options, random),
        ...conditionFeeds(material, indices, random),
        ...empty,
      };
    },
  };
}

function generator({ seed, stage, phase }: PhaseOptions, at: BatchPlace): Generator {
  const place = stage.phases.indexOf(phase);
  return batchGenerator((seed * 131 + stage.to * 17 + place + 1) % 4001, at);
}

/** The encoder of the base model and a new head, unless the phase before has trained some that fit. */
function discriminatorStart(
  passes: readonly Pass[],
  base: Weights,
  before: Weights,
): Record<string, HostTensor> {
  const start: Record<string, HostTensor> = {};
  for (const { name, shape } of passes.flatMap((pass) => trainedBy(pass))) {
    if (!name.startsWith(DISCRIMINATOR)) continue;
    const kept = before[name]?.shape.join() === shape.join() ? before[name] : undefined;
    const known = kept ?? (name.startsWith(ENCODER) ? base[name.slice(ENCODER.length)] : undefined);
    if (known) start[name] = known;
  }
  return start;
}

function emptyPrompt({ material, zeroEmptyPrompt }: PhaseOptions): Record<string, FloatTensor> {
  const { hidden, pooled } = material.empty;
  const value = (t: FloatTensor) => (zeroEmptyPrompt ? floats(t.shape) : t);
  return { empty_hidden: value(hidden), empty_pooled: value(pooled) };
}

/** Times of the student among 1 … T. */
function studentTimes({ stage, phase, alphas }: PhaseOptions): number[] {
  const T = alphas.length;
  const { from, to } = stage;
  const { timesteps = stage.timesteps } = phase;
  if (Array.isArray(timesteps)) return timesteps;
  const places = timesteps === "all" ? T : phase.objective === "lcm" ? from : to;
  return Array.from({ length: places }, (_, k) => Math.round((T * (1 + k)) / places));
}

/**
 * The paths that the teacher of a phase walks, where it asks for them.
 * @param folder keeps them.
 */
export async function phasePaths(
  options: PhaseOptions,
  { folder, onProgress }: Pick<Parameters<typeof walkPaths>[0], "folder" | "onProgress">,
): Promise<Paths | undefined> {
  const { stage, phase, config, material, alphas, microBatch, teacher } = options;
  if (!phase.paths) return undefined;
  const { count, steps = phase.teacher ?? stage.from } = phase.paths;
  const setting = phaseSetting(stage, phase, options);
  return walkPaths({
    ...{ material, count, folder, onProgress, seed: options.seed },
    setting: { ...setting, config },
    batchOf: (bucket) => batchOf(options, bucket),
    weights: new Map(Object.entries(teacher.weights).map(([k, t]) => [`teacher.${k}`, t])),
    empty: setting.guidance > 1 ? emptyPrompt(options) : {},
    times: Array.from({ length: steps }, (_, k) => Math.round((alphas.length * (steps - k)) / steps)),
    points: studentTimes(options),
    levels: (from, to) =>
      levelRows(
        Array.from({ length: microBatch }, () => [from, to]),
        alphas,
      ),
  });
}

/** Times of the teacher's path from t down to where the student's step ends. */
function path(t: number, { stage, phase, alphas }: PhaseOptions): number[] {
  if (phase.objective === "convert") return [t, 0];
  const steps = teacherSteps(stage, phase);
  const jump = alphas.length / (phase.objective === "lcm" ? stage.from : stage.to);
  return Array.from({ length: steps + 1 }, (_, k) => Math.max(0, Math.round(t - (k * jump) / steps)));
}

/** √ᾱ, √(1 − ᾱ) and the timestep of a time; 0 is a clean picture. */
function levelOf(time: number, alphas: Float32Array): [alpha: number, sigma: number, timestep: number] {
  if (time === 0) return [1, 0, 0];
  return [Math.sqrt(alphas[time - 1]), Math.sqrt(1 - alphas[time - 1]), time - 1];
}

/** √ᾱ, √(1 − ᾱ) and timesteps at the times of each sample, [times,B]. */
function levelRows(
  times: readonly (readonly number[])[],
  alphas: Float32Array,
): Record<"alphas" | "sigmas" | "timesteps", FloatTensor> {
  const [B, count] = [times.length, times[0].length];
  const rows = { alphas: floats([count, B]), sigmas: floats([count, B]), timesteps: floats([count, B]) };
  for (const [b, all] of times.entries())
    for (const [k, time] of all.entries()) {
      const [alpha, sigma, timestep] = levelOf(time, alphas);
      rows.alphas.data[k * B + b] = alpha;
      rows.sigmas.data[k * B + b] = sigma;
      rows.timesteps.data[k * B + b] = timestep;
    }
  return rows;
}

/** The levels of noise on the teacher's way from where the student is, and what else an objective needs. */
function stepFeeds(
  shape: readonly number[],
  times: readonly number[],
  options: PhaseOptions,
  random: Generator,
): Record<string, FloatTensor> {
  const rows = levelRows(
    times.map((t) => path(t, options)),
    options.alphas,
  );
  return { ...rows, ...noiseFeeds(shape, options, random), ...boundaryFeeds(rows, options.phase) };
}

/** Noised pictures; noise is pure at T, whatever the schedule says (§3.5). */
function noisedFeeds(
  { shape, data }: FloatTensor,
  options: PhaseOptions,
  random: Generator,
): Record<string, FloatTensor> {
  const { alphas } = options;
  const sample = random.randn(shape);
  const n = data.length / shape[0];
  const choices = studentTimes(options);
  const times = Array.from({ length: shape[0] }, () => choices[random.integer(choices.length)]);
  for (const [b, t] of times.entries()) {
    if (t === alphas.length) continue;
    const [alpha, sigma] = levelOf(t, alphas);
    for (let i = b * n; i < (b + 1) * n; i++) sample.data[i] = alpha * data[i] + sigma * sample.data[i];
  }
  return { sample, ...stepFeeds(shape, times, options, random) };
}

/** Points of paths [B,P,C,h,w], one of each. At T it is noise that was never walked from. */
function pathFeeds(
  { shape: [B, P, ...rest], data }: FloatTensor,
  options: PhaseOptions,
  random: Generator,
): Record<string, FloatTensor> {
  const sample = random.randn([B, ...rest]);
  const n = data.length / B / P;
  const choices = studentTimes(options);
  const places = Array.from({ length: B }, () => random.integer(P));
  for (const [b, p] of places.entries())
    if (choices[p] !== options.alphas.length)
      sample.data.set(data.subarray((b * P + p) * n, (b * P + p + 1) * n), b * n);
  return {
    sample,
    ...stepFeeds(
      sample.shape,
      places.map((p) => choices[p]),
      options,
      random,
    ),
  };
}

/** Noise for what the discriminator sees, at times of their own. */
function noiseFeeds(
  shape: readonly number[],
  { phase: { renoise }, alphas }: PhaseOptions,
  random: Generator,
): Record<string, FloatTensor> {
  if (!renoise) return {};
  const B = shape[0];
  const total = renoise.weights.reduce((a, b) => a + b, 0);
  const levels = Array.from({ length: B }, () => {
    let left = random.random() * total;
    let at = 0;
    while (at + 1 < renoise.weights.length && left >= renoise.weights[at]) left -= renoise.weights[at++];
    return levelOf(renoise.timesteps[at], alphas);
  });
  const column = (k: number) =>
    floats(
      [B],
      levels.map((level) => level[k]),
    );
  return {
    noise: random.randn(shape),
    noise_alpha: column(0),
    noise_sigma: column(1),
    noise_timestep: column(2),
  };
}

/** c_skip and c_out of consistency models. */
function boundaryFeeds(
  { timesteps }: { timesteps: FloatTensor },
  { objective }: Phase,
): Record<string, FloatTensor> {
  if (objective !== "lcm") return {};
  const scalings = Array.from(timesteps.data, boundaryScalings);
  return {
    skip: floats(
      timesteps.shape,
      scalings.map(({ skip }) => skip),
    ),
    out: floats(
      timesteps.shape,
      scalings.map(({ out }) => out),
    ),
  };
}
