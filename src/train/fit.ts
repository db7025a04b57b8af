/** @file The training loop: batches in, checkpoints, logs and previews out. Every step is a function of its number. */

import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import type { BatchPlace } from "../data/index.ts";
import { removeAbandoned } from "../platform/index.ts";
import { castTensor, Generator, type HostTensor } from "../tensor/index.ts";
import { loadSafetensors, saveSafetensors } from "../weights/index.ts";
import { Logs } from "./logs.ts";
import { initialValues, type LearningRate, learningRateAt, type Optimizer } from "./optimizer.ts";
import { type ParallelOptions, ParallelTrainer, trainedBy } from "./parallel.ts";

/** What is trained: the passes of a step and where its batches come from. */
export interface Job extends Pick<ParallelOptions, "passes" | "variants" | "frozen"> {
  /** Samples in one micro-batch of one replica. */
  batch: number;
  /** Inputs of one micro-batch. Must depend on nothing but its arguments, so that a resumed run is the same run. */
  feeds(at: BatchPlace): Promise<Record<string, HostTensor>>;
  /** Weights to start from, by key; the others are initialised. */
  start?: Readonly<Record<string, HostTensor>>;
  /** Called with the averaged weights when samples are due. */
  preview?(weights: Record<string, HostTensor>, step: number): Promise<void>;
}

export interface FitOptions {
  /** Folder of the run: checkpoint.safetensors, log.jsonl, TensorBoard events, samples. */
  out: string;
  steps: number;
  optimizer: Optimizer;
  learningRate: LearningRate;
  /** Largest global gradient norm. */
  clipNorm?: number;
  /** Decay of the averaged weights; warms up as (1 + t)/(10 + t). */
  emaDecay: number;
  /** Micro-batches per replica and step. Default 1. */
  accumulate?: number;
  replicas?: number;
  seed: number;
  /** Minutes between checkpoints. */
  checkpointMinutes: number;
  logEvery: number;
  /** Steps between previews; 0 for none. */
  sampleEvery: number;
  watch?: Watch;
  /** What the run is; a checkpoint made with another is refused. */
  fingerprint: string;
  /** Saves a checkpoint and stops. */
  signal?: AbortSignal;
}

/**
 * Looks at every step before it is saved, given what it returned for the step before, which checkpoints keep; 0 at first.
 * Throws to stop the run.
 */
export type Watch = (step: number, metrics: Readonly<Record<string, number>>, before: number) => number;

export interface Progress {
  step: number;
  steps: number;
  loss: number;
  metrics: Record<string, number>;
  gradNorm: number;
  learningRate: number;
  picturesPerSecond: number;
  secondsLeft: number;
}

/**
 * Runs or resumes a job; yields after every step and returns the averaged weights.
 * @throws when the loss is not finite (the last checkpoint stays), or the run in `out` was another.
 */
export async function* fit(
  job: Job,
  options: FitOptions,
): AsyncGenerator<Progress, Record<string, HostTensor>> {
  const { out, steps, accumulate = 1 } = options;
  mkdirSync(out, { recursive: true });
  await using trainer = await ParallelTrainer.create({ ...job, ...options });
  const file = join(out, "checkpoint.safetensors");
  removeAbandoned(file);
  let step = 0;
  let watched = 0;
  if (existsSync(file)) {
    const { tensors, metadata } = await loadSafetensors(file);
    if (metadata.fingerprint !== options.fingerprint)
      throw new Error(
        `${file} belongs to another recipe: give a new output folder, or the recipe it was made with`,
      );
    await trainer.load(tensors);
    step = Number(metadata.step);
    watched = Number(metadata.watched ?? 0);
  } else await trainer.load(initialWeights(job, options.seed));
  const logs = new Logs(out, step);

  const fetchBatches = (t: number) =>
    Promise.all(
      Array.from({ length: trainer.replicas }, (_, replica) =>
        Promise.all(
          Array.from({ length: accumulate }, (_, micro) =>
            job.feeds({
              step: t,
              micro: replica + micro * trainer.replicas,
              micros: trainer.replicas * accumulate,
            }),
          ),
        ),
      ),
    );
  let saved = step;
  let savedAt = Date.now();
  const save = async () => {
    const metadata = { step: String(step), watched: String(watched), fingerprint: options.fingerprint };
    await saveSafetensors(file, await trainer.save(), metadata);
    saved = step;
    savedAt = Date.now();
  };

  let upcoming = step < steps ? fetchBatches(step) : Promise.resolve([]);
  const perStep = job.batch * trainer.replicas * accumulate;
  let seconds = 0; // moving average of a step
  while (step < steps) {
    const started = performance.now();
    const batches = await upcoming;
    if (step + 1 < steps) {
      upcoming = fetchBatches(step + 1);
      upcoming.catch(() => {}); // reported when awaited
    }
    const learningRate = learningRateAt(options.learningRate, step, steps);
    const emaDecay = Math.min(options.emaDecay, (1 + step) / (10 + step));
    const scalars = { ...options.optimizer.scalars(step + 1, learningRate), emaDecay };
    const { metrics } = await trainer.step(batches, scalars, options.clipNorm);
    const diverged = Object.entries(metrics).filter(([, value]) => !Number.isFinite(value));
    if (diverged.length > 0)
      throw new Error(
        `training diverged at step ${step}: ${diverged.map(([k, v]) => `${k} ${v}`).join(", ")}; ${
          existsSync(file)
            ? `the last checkpoint is ${file}; delete it, or give a new output folder, and`
            : "no checkpoint was written yet;"
        } lower the learning rate`,
      );
    watched = options.watch?.(step + 1, metrics, watched) ?? 0;
    const { loss, grad_norm: norm, ...others } = metrics;
    const took = (performance.now() - started) / 1000;
    seconds = seconds === 0 ? took : seconds * 0.95 + took * 0.05;
    if (step % options.logEvery === 0 || step + 1 === steps)
      logs.write({
        step,
        loss,
        ...others,
        grad_norm: norm,
        learning_rate: learningRate,
        pictures_per_second: perStep / seconds,
      });
    step++;
    const sampleDue = options.sampleEvery > 0 && (step % options.sampleEvery === 0 || step === steps);
    if (
      Date.now() - savedAt > options.checkpointMinutes * 60_000 ||
      step === steps ||
      options.signal?.aborted
    )
      await save();
    if (sampleDue && job.preview) await job.preview(averaged(await trainer.save()), step);
    yield {
      step,
      steps,
      loss,
      metrics: others,
      gradNorm: norm,
      learningRate,
      picturesPerSecond: perStep / seconds,
      secondsLeft: seconds * (steps - step),
    };
    if (options.signal?.aborted) {
      if (saved < step) await save(); // the signal came after the checkpoint was due
      break;
    }
  }
  return averaged(await trainer.save());
}

function initialWeights(job: Job, seed: number): Record<string, HostTensor> {
  const generator = new Generator(seed);
  const random = () => generator.random();
  return Object.fromEntries(
    job.passes
      .flatMap((pass) => trainedBy(pass, job.frozen))
      .map((p) => {
        const fresh = initialValues(p.shape, p.init, random);
        const start = job.start?.[p.name];
        return [p.name, start ? castTensor(start, "float32") : fresh];
      }),
  );
}

/** The moving averages under the parameters' own keys. */
function averaged(tensors: Record<string, HostTensor>): Record<string, HostTensor> {
  return Object.fromEntries(
    Object.entries(tensors)
      .filter(([k]) => k.startsWith("ema."))
      .map(([k, t]) => [k.slice(4), t]),
  );
}
