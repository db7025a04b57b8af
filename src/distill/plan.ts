/** @file What a distillation will cost, told before it starts. */

import { availableParallelism } from "node:os";
import { join } from "node:path";
import { flopsOf, graph, input, isParameter, topological } from "../graph/index.ts";
import { clipTextConfig, unetConfig, vaeConfig, vaeScaleFactor } from "../models/index.ts";
import { readConfig } from "../pipelines/index.ts";
import { compile } from "../runtime/index.ts";
import { sizeOf } from "../tensor/index.ts";
import { optimizerOf, type Pass, passGraph, replicasFor, sideStep, trainedBy } from "../train/index.ts";
import { phaseTitle } from "./distill.ts";
import { DISCRIMINATOR, ENCODER, type Setting, teacherPass } from "./lightning.ts";
import { passesOf, phaseSetting } from "./phase.ts";
import type { DistillRecipe, Phase } from "./recipe.ts";

export interface PhaseEstimate {
  /** "8 to 4: conditional, LoRA of rank 16". */
  phase: string;
  steps: number;
  batch: number;
  /** Teacher's evaluations for one latent, the guided ones twice. */
  teacherEvaluations: number;
  /** Parameters of the student that are trained. */
  trained: number;
  /** Parameters of the discriminator. */
  discriminator: number;
  /** Of one optimiser step, all passes. */
  gflop: number;
  /** Of the teacher's walks before the first step, unless a phase before left them on disk. */
  walkGflop: number;
  /** Weights, gradients, optimiser state and activations of all replicas, about. */
  bytes: number;
  /** At `efficiency` of the machine's speed. */
  seconds: number;
}

export interface DistillPlan {
  phases: PhaseEstimate[];
  /** Of a MatMul on all cores now. */
  gflops: number;
  /** Share of that speed that training steps are taken to reach. */
  efficiency: number;
  seconds: number;
  /** Of the largest phase. */
  bytes: number;
}

/** What training steps of small and large networks reach of a MatMul's speed, about (`npm run bench engine`). */
const EFFICIENCY = 0.6;

/**
 * Reads the configs, builds the graphs of every phase and counts; trains nothing.
 * @throws a sentence when configs are missing or the data's size does not fit.
 */
export async function planDistillation(
  recipe: DistillRecipe,
  { replicas = availableParallelism() }: { replicas?: number } = {},
): Promise<DistillPlan> {
  const { teacher, data, stages } = recipe;
  const config = await readConfig(join(teacher, "unet", "config.json"), unetConfig);
  const vae = await readConfig(join(teacher, "vae", "config.json"), vaeConfig);
  sideStep(recipe, vae, config); // throws where the pictures do not fit
  const text = await readConfig(join(teacher, "text_encoder_2", "config.json"), clipTextConfig);
  const side = data.kind === "pictures" ? data.size / vaeScaleFactor(vae) : (config.sample_size ?? 128);
  const gflops = await matmulSpeed();
  const phases = stages.flatMap((stage) =>
    stage.phases.map((phase) => {
      const guess = { prediction: "epsilon" } as const; // all kinds cost the same
      const setting: Setting = {
        ...phaseSetting(stage, phase, { student: guess, teacher: guess, loraScale: recipe.loraAlpha }),
        config,
        batch: {
          batch: recipe.microBatch,
          height: side,
          width: side,
          tokens: text.max_position_embeddings,
          pooled: text.projection_dim,
        },
      };
      return estimate(passesOf(setting, phase, recipe.discriminatorHeads), setting, phase, {
        recipe,
        replicas,
        gflops,
        title: phaseTitle(stage, phase),
        walks: phase.paths && { steps: phase.teacher ?? stage.from, ...phase.paths },
      });
    }),
  );
  return {
    phases,
    gflops,
    efficiency: EFFICIENCY,
    seconds: phases.reduce((sum, p) => sum + p.seconds, 0),
    bytes: Math.max(...phases.map((p) => p.bytes)),
  };
}

interface Estimating {
  recipe: DistillRecipe;
  replicas: number;
  gflops: number;
  title: string;
  /** Of the teacher. */
  walks?: { count: number; steps: number };
}

function estimate(
  passes: readonly Pass[],
  setting: Setting,
  phase: Phase,
  { recipe, replicas: most, gflops, title, walks }: Estimating,
): PhaseEstimate {
  const { steps, guidance } = setting;
  const batch = phase.batch ?? recipe.batch;
  const replicas = replicasFor(batch / recipe.microBatch, most);
  const frozen = frozenOf(passes, phase, recipe);
  const trainedOf = (pass: Pass) =>
    trainedBy(pass, frozen).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const learning = passes.filter((pass) => pass.loss).map(trainedOf);
  const [trained, discriminator = 0] = phase.discriminatorAlone ? [0, ...learning] : learning;
  const flops = passes.reduce((sum, pass) => sum + flopsOf(passGraph(pass, frozen)), 0);
  const gflop = (flops * batch) / recipe.microBatch / 1e9;
  const walkStep = walks ? flopsOf(passGraph(teacherPass({ ...setting, steps: 1 }))) : 0;
  const walkGflop = walks ? (walkStep * walks.steps * walks.count) / recipe.microBatch / 1e9 : 0;
  // Each replica has parameters, gradients and state of its own; one more of each is shared.
  const states = optimizerOf(phase.optimizer ?? recipe.optimizer).state.length + 1;
  const perParameter = replicas * (2 + states) + 1 + replicas + states;
  const fixed = [...frozen.values()].reduce((sum, size) => sum + size, 0);
  const floats = (trained + discriminator) * perParameter + replicas * (fixed + activations(passes));
  return {
    phase: title,
    steps: phase.steps,
    batch,
    teacherEvaluations: steps * (guidance > 1 ? 2 : 1),
    trained,
    discriminator,
    gflop,
    walkGflop,
    bytes: 4 * floats,
    seconds: (walkGflop + phase.steps * gflop) / (gflops * EFFICIENCY),
  };
}

/** Sizes of the parameters that stay: the teacher's, what a LoRA adapts, who does not learn in this phase. */
function frozenOf(
  passes: readonly Pass[],
  { lora, discriminatorAlone: alone }: Phase,
  { discriminatorEncoder }: DistillRecipe,
): Map<string, number> {
  const roots = passes.flatMap(({ loss, outputs = {} }) => [
    ...(loss ? [loss] : []),
    ...Object.values(outputs),
  ]);
  const fixed = topological(roots).filter(isParameter);
  const stays = (key: string) => {
    if (key.startsWith("teacher.")) return true;
    if (key.startsWith(ENCODER)) return discriminatorEncoder === "frozen";
    if (key.startsWith(DISCRIMINATOR)) return false;
    return alone || (lora !== undefined && !/\.lora_(up|down)\.weight$/.test(key));
  };
  return new Map(
    fixed
      .map((v) => [v.attrs.name as string, sizeOf(v.shape as number[])] as const)
      .filter(([key]) => stays(key)),
  );
}

/** Values of the largest forward pass that its gradient may need. */
function activations(passes: readonly Pass[]): number {
  const sizes = passes.map(({ loss }) =>
    loss ? topological([loss]).reduce((sum, v) => sum + (v.op.leaf ? 0 : sizeOf(v.shape as number[])), 0) : 0,
  );
  return Math.max(...sizes);
}

/** GFLOP/s of a 1024³ MatMul on all cores. */
async function matmulSpeed(): Promise<number> {
  const n = 1024;
  const [a, b] = ["a", "b"].map((name) => input(name, "float32", [n, n]));
  await using program = await compile(graph({ c: a.matmul(b) }));
  const matrix = { dtype: "float32", shape: [n, n], data: new Float32Array(n * n).fill(0.5) } as const;
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 6; i++) {
    const started = performance.now();
    await program.run({ a: matrix, b: matrix });
    best = Math.min(best, (performance.now() - started) / 1000);
  }
  return (2 * n ** 3) / best / 1e9;
}
