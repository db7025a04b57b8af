/**
 * @file Progressive adversarial distillation (Lin et al. 2024, §3.6): stage after stage a student learns to take
 * several steps of its teacher in one, then becomes the teacher. Every phase is a run with a folder of its own, so a
 * distillation that is stopped anywhere goes on exactly.
 */

import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { contactSheet } from "../data/index.ts";
import { parametersOf } from "../graph/index.ts";
import { type UNetConfig, unetConfig } from "../models/index.ts";
import {
  loadWeights,
  readConfig,
  readJson,
  type SamplingSettings,
  SDXL,
  samplingMetadata,
  saveCheckpoint,
  saveJson,
  weightsFile,
} from "../pipelines/index.ts";
import { atomicWrite, fileHash } from "../platform/index.ts";
import { alphasCumprod, type PredictionType, schedulerConfig } from "../samplers/index.ts";
import { castTensor, floats, type HostTensor } from "../tensor/index.ts";
import {
  type FitOptions,
  fit,
  hashOf,
  type Job,
  type Material,
  type OpenOptions,
  openMaterial,
  optimizerOf,
  type Progress,
  replicasFor,
  unetLoss,
  type Watch,
} from "../train/index.ts";
import { loadSafetensors, matchKeys, SafetensorsFile, saveLora, saveSafetensors } from "../weights/index.ts";
import { DISCRIMINATOR } from "./lightning.ts";
import { type PhaseOptions, phaseJob, phasePaths } from "./phase.ts";
import { type DistillRecipe, isAdversarial, type Phase, type Stage } from "./recipe.ts";

type Weights = Record<string, HostTensor>;

export interface DistillOptions extends OpenOptions {
  /** Saves a checkpoint and stops. */
  signal?: AbortSignal;
  /** Processes that compute gradients side by side; default one per core, at most one per micro-batch. */
  replicas?: number;
}

export interface DistillProgress extends Progress {
  /** "8 to 4: conditional, LoRA of rank 16". */
  phase: string;
}

/** A finished student, or the base model. Weights are read when they are needed, in float32. */
interface Student {
  prediction: PredictionType;
  unet(): Promise<Weights>;
  /** Its LoRA on the base model, under the keys of `loraScope`. */
  lora?: () => Promise<Weights>;
}

/** What all stages share. */
interface Context {
  recipe: DistillRecipe;
  config: UNetConfig;
  base: Student;
  /** SHA-256 of the base model's UNet: another one in its place is another run. */
  teacherHash: string;
  /** By number of steps; the base model under that of the first teacher. */
  students: Map<number, Student>;
  material: Material;
  alphas: Float32Array;
  zeroEmptyPrompt: boolean;
  options: DistillOptions;
}

/**
 * Distils what a recipe says, going on where `out` stopped; yields after every step. Each stage that publishes writes to
 * `out`, with SDXL-Lightning's names, `<name>_<N>step_unet.safetensors`, the whole model as `<name>_<N>step.safetensors`,
 * and `<name>_<N>step_lora.safetensors` where it trained one.
 * @throws a sentence when something is missing or does not fit, or a phase diverges; its last checkpoint stays.
 */
export async function* distill(
  recipe: DistillRecipe,
  options: DistillOptions = {},
): AsyncGenerator<DistillProgress, void> {
  const { signal } = options;
  const onPrepare: OpenOptions["onPrepare"] = (...what) => {
    signal?.throwIfAborted(); // until the first step there is nothing to save
    options.onPrepare?.(...what);
  };
  const context = await openContext(recipe, { ...options, onPrepare });
  try {
    await saveJson(join(recipe.out, "recipe.json"), recipe);
    let discriminator: string | undefined;
    for (const stage of recipe.stages) {
      discriminator = yield* runStage(context, stage, recipe.keepDiscriminator ? discriminator : undefined);
      if (signal?.aborted) return;
    }
  } finally {
    await context.material.close();
  }
}

async function openContext(recipe: DistillRecipe, options: DistillOptions): Promise<Context> {
  const { teacher, out } = recipe;
  const folder = join(teacher, "unet");
  const config = await readConfig(join(folder, "config.json"), unetConfig);
  const scheduler = await readConfig(join(teacher, "scheduler", "scheduler_config.json"), schedulerConfig);
  const index = await readJson(join(teacher, "model_index.json"));
  const load = async () => inFloat32(await loadWeights(folder));
  matchKeys(weightsFile(folder), unetShapes(config), await load());
  const base: Student = { unet: load, prediction: scheduler.prediction_type };
  const source = { ...recipe, out, vae: join(teacher, "vae"), text: teacher };
  return {
    recipe,
    config,
    base,
    teacherHash: await fileHash(weightsFile(folder)),
    students: new Map([[recipe.stages[0].from, base]]),
    material: await openMaterial(source, config, options),
    alphas: alphasCumprod(scheduler),
    zeroEmptyPrompt: (index.force_zeros_for_empty_prompt as boolean | undefined) ?? true,
    options,
  };
}

/** Keys and shapes of a UNet's weights. */
function unetShapes(config: UNetConfig): Record<string, readonly number[]> {
  const side = 2 ** (config.block_out_channels.length - 1);
  const { addition_time_embed_dim: ids = 0, projection_class_embeddings_input_dim: width = 0 } = config;
  const pooled = (width ?? 0) - 6 * (ids ?? 0);
  const { loss } = unetLoss(config, { batch: 1, height: side, width: side, tokens: 1, pooled });
  return Object.fromEntries(parametersOf([loss]).map((p) => [p.name, p.shape]));
}

function inFloat32(weights: Weights): Weights {
  return Object.fromEntries(Object.entries(weights).map(([k, t]) => [k, castTensor(t, "float32")]));
}

/** Returns the folder of the last discriminator, which starts as that of the folder that is given. */
async function* runStage(
  context: Context,
  stage: Stage,
  discriminator?: string,
): AsyncGenerator<DistillProgress, string | undefined> {
  const { recipe, students, options } = context;
  let student = students.get(stage.from)!;
  let withLora = false;
  let whole = false; // whether this stage has trained the whole network, which then is what it hands on
  for (const [i, phase] of stage.phases.entries()) {
    const { objective, lora } = phase;
    const folder = join(
      recipe.out,
      `${stage.from}-${stage.to}`,
      `${i + 1}-${objective}${lora ? "-lora" : ""}`,
    );
    const prediction = objective === "convert" ? "sample" : student.prediction;
    const run: PhaseRun = { stage, phase, folder, student: { ...student, prediction }, discriminator };
    for await (const progress of runPhase(context, run))
      yield { ...progress, phase: phaseTitle(stage, phase) };
    if (options.signal?.aborted) return discriminator;
    const result = async () => (await loadSafetensors(join(folder, STUDENT))).tensors;
    const merged = async () => mergeLora(await context.base.unet(), await result(), recipe.loraAlpha);
    student = lora
      ? { prediction, lora: result, unet: whole ? student.unet : merged }
      : { ...student, prediction, unet: result };
    withLora ||= lora !== undefined;
    whole ||= lora === undefined;
    if (isAdversarial(phase)) discriminator = folder;
  }
  students.set(stage.to, student);
  await rm(join(recipe.out, `${stage.from}-${stage.to}`, PATHS), { recursive: true, force: true });
  if (stage.publish) await publish(context, stage, student, withLora);
  return discriminator;
}

/** "8 to 4: conditional, LoRA of rank 16". */
export function phaseTitle({ from, to }: Stage, { objective, lora, discriminatorAlone }: Phase): string {
  const how = [lora && `LoRA of rank ${lora}`, discriminatorAlone && "discriminator alone"].filter(Boolean);
  return `${from} to ${to}: ${[objective, ...how].join(", ")}`;
}

/**
 * Files of a finished phase. The student is written last: where it is, the phase is done. A whole network can be drawn
 * with as it is there, to compare phases.
 */
const STUDENT = "student.safetensors";
/** Folder in a stage's, until the stage is done. */
const PATHS = "paths";
const DISCRIMINATOR_FILE = "discriminator.safetensors";

interface PhaseRun {
  stage: Stage;
  phase: Phase;
  folder: string;
  student: Student;
  /** Folder of the phase whose discriminator goes on here. */
  discriminator?: string;
}

async function* runPhase(context: Context, run: PhaseRun): AsyncGenerator<Progress, void> {
  const { recipe, options } = context;
  const { folder, stage, phase, student } = run;
  const fingerprint = phaseFingerprint(context, run);
  const file = join(folder, STUDENT);
  if (existsSync(file)) {
    const { metadata } = await loadSafetensors(file);
    if (metadata.fingerprint === fingerprint) return;
    throw new Error(
      `${folder} was trained by another recipe; give a new output folder, or delete this one to train it again`,
    );
  }
  options.onPrepare?.("building the training step");
  const micro = (phase.batch ?? recipe.batch) / recipe.microBatch;
  const replicas = replicasFor(micro, options.replicas ?? availableParallelism());
  const fitOptions: FitOptions = {
    ...recipe,
    out: folder,
    steps: phase.steps,
    learningRate: phase.learningRate,
    emaDecay: phase.emaDecay ?? recipe.emaDecay,
    sampleEvery: phase.discriminatorAlone ? 0 : recipe.sampleEvery || phase.steps,
    optimizer: optimizerOf(phase.optimizer ?? recipe.optimizer),
    accumulate: micro / replicas,
    replicas,
    fingerprint,
    signal: options.signal,
    watch: divergence(recipe.patience, phase.steps, folder),
  };
  const phaseOptions = await phaseOptionsOf(context, run);
  await using paths = await phasePaths(phaseOptions, {
    folder: join(folder, "..", PATHS),
    onProgress: (...done) => options.onPrepare?.("walking the teacher's paths", ...done),
  });
  const training = fit(jobOf(context, run, { ...phaseOptions, paths }), fitOptions);
  let step = await training.next();
  try {
    for (; !step.done; step = await training.next()) yield step.value;
  } finally {
    if (!step.done) await training.return({}); // nobody listens any more: the replicas end
  }
  if (options.signal?.aborted) return;
  const checkpoint = join(folder, "checkpoint.safetensors");
  const { tensors } = await loadSafetensors(checkpoint);
  const [discriminator] = split(tensors);
  if (Object.keys(discriminator).length > 0)
    await saveSafetensors(join(folder, DISCRIMINATOR_FILE), discriminator);
  const stays = phase.discriminatorAlone ? await startOf(run) : {};
  const { settings } = settingsOf(stage, student, phase);
  const weights = { ...stays, ...split(step.value)[1] };
  await saveSafetensors(file, weights, { fingerprint, ...samplingMetadata(settings) });
  await rm(checkpoint);
}

/** The discriminator's weights, and the others. */
function split(weights: Weights): [Weights, Weights] {
  const entries = Object.entries(weights);
  const ofDiscriminator = ([key]: [string, HostTensor]) => key.startsWith(DISCRIMINATOR);
  return [
    Object.fromEntries(entries.filter(ofDiscriminator)),
    Object.fromEntries(entries.filter((entry) => !ofDiscriminator(entry))),
  ];
}

/** What decides the result of a phase: its own fields, those of the phases before it, and what they share. */
function phaseFingerprint(
  { recipe, teacherHash }: Pick<Context, "recipe" | "teacherHash">,
  { stage, phase }: Pick<PhaseRun, "stage" | "phase">,
): string {
  const { out, name, teacher, stages, ...others } = recipe;
  const { patience, checkpointMinutes, logEvery, sampleEvery, dtype, prompts, ...decides } = others;
  const done = stages.slice(0, stages.indexOf(stage) + 1).map((s) => ({
    ...s,
    publish: undefined,
    phases: s === stage ? s.phases.slice(0, s.phases.indexOf(phase) + 1) : s.phases,
  }));
  const onlyBeside = done.every(({ phases }) => phases.every((p, i) => !p.lora || isBeside(phases, i)));
  const network = done.map((s) => ({ ...s, phases: s.phases.filter(({ lora }) => !lora) }));
  return hashOf({ ...decides, teacher: teacherHash, stages: !phase.lora && onlyBeside ? network : done });
}

/** Whether a phase trains a LoRA that no whole network learns from: one beside the network of its stage. */
function isBeside(phases: readonly Phase[], i: number): boolean {
  return !!phases[i].lora && !isAdversarial(phases[i]) && phases.slice(0, i).some(({ lora }) => !lora);
}

/** What a phase trains, as it finds it: the whole network, or the LoRA if there is one. */
async function startOf({ phase, student }: PhaseRun): Promise<Weights> {
  return phase.lora ? ((await student.lora?.()) ?? {}) : student.unet();
}

async function phaseOptionsOf(context: Context, run: PhaseRun): Promise<PhaseOptions> {
  const { recipe, students, base } = context;
  const { stage, phase, student, discriminator } = run;
  const teacher = students.get(phase.teacher ?? stage.from)!;
  return {
    ...context,
    ...recipe,
    stage,
    phase,
    teacher: { weights: await teacher.unet(), prediction: teacher.prediction },
    student: { weights: await startOf(run), prediction: student.prediction },
    base: await base.unet(),
    discriminator: discriminator
      ? (await loadSafetensors(join(discriminator, DISCRIMINATOR_FILE))).tensors
      : {},
    loraScale: recipe.loraAlpha,
  };
}

function jobOf({ recipe }: Context, { stage, phase, student, folder }: PhaseRun, options: PhaseOptions): Job {
  const job = phaseJob(options);
  const preview = async (averaged: Weights, step: number) => {
    const file = join(folder, "preview.safetensors");
    const kind = phase.lora ? "lora" : "unet";
    const options = { ...recipe, ...settingsOf(stage, student, phase) };
    await saveStudent(file, kind, split(averaged)[1], options);
    await atomicWrite(join(folder, `samples-${step}.png`), await sampleGrid(recipe, file, kind));
    await rm(file);
  };
  return recipe.prompts.length > 0 ? { ...job, preview } : job;
}

/** Less than this share of the latents is not all; means over micro-batches round. */
const ALL = 1 - 1e-6;

/**
 * Counts the steps in which D has told all real latents from all generated ones.
 * @throws when they are `patience` in a row, or half of the phase's `steps` if that is less.
 */
export function divergence(patience: number, steps: number, folder: string): Watch {
  const most = Math.min(patience, Math.floor(steps / 2));
  return (step, metrics, before) => {
    const { discriminator_accuracy_real: real = 0, discriminator_accuracy_fake: fake = 0 } = metrics;
    const pinned = Math.min(real, fake) > ALL ? before + 1 : 0;
    if (most > 0 && pinned >= most)
      throw new Error(
        `${folder}: at step ${step} the discriminator has been right about everything for ${pinned} steps, and the ` +
          "student learns no more; delete this folder and lower the learning rate, train the stage before longer in a " +
          "new output folder, or set patience to 0 to go on all the same",
      );
    return pinned;
  };
}

function settingsOf(
  { to }: Stage,
  { prediction }: Student,
  { objective }: Phase,
): { settings: SamplingSettings } {
  const sampler = objective === "lcm" ? "lcm" : "euler";
  return { settings: { steps: to, predictionType: prediction, spacing: "trailing", guidance: 0, sampler } };
}

/** One picture of each prompt at the student's own step count, always with the same seeds. */
async function sampleGrid(
  { teacher, prompts }: DistillRecipe,
  file: string,
  kind: "unet" | "lora",
): Promise<Buffer> {
  await using sdxl = await SDXL.load(teacher, {
    threads: 1,
    ...(kind === "unet" ? { unet: file } : { loras: { [file]: 1 } }),
  });
  const pictures = [];
  for (const [seed, prompt] of prompts.entries()) {
    const [picture] = await sdxl.textToImage(prompt, { seed });
    pictures.push({ ...picture, label: prompt });
  }
  return contactSheet(pictures, { columns: Math.min(8, prompts.length) });
}

interface SaveOptions extends Pick<DistillRecipe, "dtype" | "loraAlpha"> {
  settings: SamplingSettings;
}

/** A student's weights for others: diffusers' names, or a LoRA with kohya's. */
async function saveStudent(
  file: string,
  kind: "unet" | "lora",
  weights: Weights,
  { dtype, loraAlpha, settings }: SaveOptions,
  origin: Readonly<Record<string, string>> = {},
): Promise<void> {
  const metadata = { ...samplingMetadata(settings), ...origin };
  if (kind === "unet") {
    const cast = Object.fromEntries(Object.entries(weights).map(([k, t]) => [k, castTensor(t, dtype)]));
    return saveSafetensors(file, cast, { format: "pt", ...metadata });
  }
  const modules = loraModules(weights).map(([path, { down, up }]) => {
    return [path, { down, up, alpha: loraAlpha * down.shape[0] }] as const;
  });
  return saveLora(file, new Map(modules), { dtype, metadata });
}

function loraModules(weights: Weights): [string, { down: HostTensor; up: HostTensor }][] {
  const suffix = ".lora_down.weight";
  const paths = Object.keys(weights)
    .filter((k) => k.endsWith(suffix))
    .map((k) => k.slice(0, -suffix.length));
  return paths.map((path) => [
    path,
    { down: weights[`${path}${suffix}`], up: weights[`${path}.lora_up.weight`] },
  ]);
}

/** W + scale · up·down for every adapted module. */
function mergeLora(base: Weights, lora: Weights, scale: number): Weights {
  const out = { ...base };
  for (const [path, { down, up }] of loraModules(lora)) {
    const weight = base[`${path}.weight`];
    const [rows, rank] = up.shape;
    const width = down.data.length / rank;
    const data = Float32Array.from(weight.data as Float32Array);
    const [a, b] = [up.data, down.data] as [Float32Array, Float32Array];
    for (let o = 0; o < rows; o++)
      for (let r = 0; r < rank; r++) {
        const factor = scale * a[o * rank + r];
        for (let i = 0; i < width; i++) data[o * width + i] += factor * b[r * width + i];
      }
    out[`${path}.weight`] = floats(weight.shape, data);
  }
  return out;
}

/** Writes a stage's files, unless they are there. The UNet comes last and says what it was made by. */
async function publish(context: Context, stage: Stage, student: Student, withLora: boolean): Promise<void> {
  const { recipe } = context;
  const last = stage.phases[stage.phases.length - 1];
  const options = { ...recipe, ...settingsOf(stage, student, last) };
  const suffix = student.prediction === "sample" ? "_x0" : "";
  const path = (kind: string) => join(recipe.out, `${recipe.name}_${stage.to}step${kind}.safetensors`);
  const file = path(`_unet${suffix}`);
  // A network's fingerprint leaves out the LoRA phases beside it, but their file is written here as well.
  const made = stage.phases.map((phase) => phaseFingerprint(context, { stage, phase }));
  const origin = { "fewstep.recipe": hashOf([...made, recipe.dtype]) };
  if (existsSync(file)) {
    await using published = await SafetensorsFile.open(file);
    if (published.metadata["fewstep.recipe"] === origin["fewstep.recipe"]) return;
  }
  const unet = await student.unet();
  await saveCheckpoint(path(suffix), recipe.teacher, unet, options);
  if (withLora && student.lora) await saveStudent(path("_lora"), "lora", await student.lora(), options);
  await saveStudent(file, "unet", unet, options, origin);
}
