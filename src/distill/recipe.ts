/** @file Recipes of distillation: stages as data, each with phases that train one after the other. */

import { z } from "zod";
import { localPath } from "../hub/index.ts";
import { readJson } from "../pipelines/index.ts";
import { fieldError, recipeFields } from "../train/index.ts";

const { data, learningRate, optimizer } = recipeFields;

const count = z.int().positive();
const fraction = z.number().min(0).max(1);
const time = z.int().min(1).max(1000);
const times = z.union([z.enum(["grid", "all"]), z.array(time).min(1)]);

/** What a phase trains the student with. */
const objective = z.enum(["mse", "conditional", "unconditional", "convert", "lcm"]);

const phase = z.strictObject({
  /**
   * "mse": the teacher's place, exactly. "conditional": D(x_{t−ns}, x_t, …). "unconditional": D′(x_{t−ns}, …).
   * "convert": from predicting noise to predicting clean latents. "lcm": latent consistency.
   */
  objective,
  steps: count,
  learningRate,
  /** Rank of a LoRA on the base model, which goes on from the stage before; left out, the whole network is trained. */
  lora: count.optional(),
  /** Steps that an earlier student was distilled to, which teaches here and so skips levels. Default: `from`. */
  teacher: count.optional(),
  /** Instead of the stage's: the time of the last step alone, for example, where D is to see clean latents only. */
  timesteps: times.optional(),
  /**
   * The student starts from points on paths that the teacher walks from pure noise, `count` of them in `steps` steps
   * (default: the teacher's), instead of from noised pictures.
   */
  paths: z.strictObject({ count, steps: count.optional() }).optional(),
  /** Times at which D sees its latents noised again, and how often each. */
  renoise: z
    .strictObject({ timesteps: z.array(time).min(1), weights: z.array(z.number().positive()) })
    .optional(),
  /** D's learning rate as a multiple of the student's (Heusel et al. 2017); default 1. */
  discriminatorRate: z.number().positive().optional(),
  /** D learns alone, for a lead; the student stays as it is. */
  discriminatorAlone: z.boolean().optional(),
  /** Instead of the recipe's, as are the next two. */
  optimizer: optimizer.optional(),
  batch: count.optional(),
  emaDecay: fraction.optional(),
});

const stage = z.strictObject({
  /** Steps of the teacher, from pure noise to a picture. */
  from: count,
  /** Steps of the student. */
  to: count,
  /** Classifier-free guidance of the teacher, which the student takes over; up to 1 it is off. */
  guidance: z.number().min(0).default(1),
  /** Times that the student is trained at: where it will be sampled, everywhere, or those of a list. */
  timesteps: times.default("grid"),
  phases: z.array(phase).min(1),
  /** Whether the stage's weights are written for others to use. */
  publish: z.boolean().default(true),
});

const schema = z.strictObject({
  task: z.literal("distill"),
  /** Folder of the run, and of what it publishes. */
  out: z.string(),
  /** File names start with it: `<name>_4step_unet.safetensors`. */
  name: z
    .string()
    .regex(/^\w[\w.-]*$/, "letters, digits, _ and - make a file name")
    .default("lightning"),
  /** Folder of the base model, in diffusers layout, or the name of one that was pulled. */
  teacher: z.string(),
  data,
  /** Random captions of every picture, encoded once. */
  captions: count.default(6),
  batch: count.default(32),
  microBatch: count.default(16),
  optimizer: optimizer.prefault({ betas: [0, 0.99], weightDecay: 0 }),
  clipNorm: z.number().positive().default(1),
  /** Decay of the averaged weights, which are what is kept; 0 for the weights themselves. */
  emaDecay: fraction.default(0.99),
  /** Scale of a LoRA's alpha to its rank. */
  loraAlpha: z.number().positive().default(1),
  /** Where D looks: at the "mid" block, as in the paper, or at "all" resolutions on the way there too. */
  discriminatorHeads: z.enum(["mid", "all"]).default("mid"),
  /** Whether D's encoder is trained with its heads, as in the paper, or stays the base model's. */
  discriminatorEncoder: z.enum(["trained", "frozen"]).default("trained"),
  /** Whether D goes on from stage to stage; in the paper it starts again at each. */
  keepDiscriminator: z.boolean().default(false),
  /** Steps in which D tells all real from all generated latents before a stage counts as diverged; 0: never. */
  patience: z.int().min(0).default(300),
  seed: z.int().min(0).max(4000).default(1),
  checkpointMinutes: z.number().positive().default(3),
  logEvery: count.default(10),
  /** Steps between sample grids; 0 for one at the end of each phase. */
  sampleEvery: z.int().min(0).default(0),
  dtype: z.enum(["float32", "float16"]).default("float16"),
  prompts: z.array(z.string()).default(["a red apple", "a cat", "a house", "a yellow star"]),
  stages: z.array(stage).min(1),
});

export type DistillRecipe = z.infer<typeof schema>;
export type Stage = DistillRecipe["stages"][number];
export type Phase = Stage["phases"][number];

/** Whether a discriminator takes part. */
export function isAdversarial({ objective }: Phase): boolean {
  return objective === "conditional" || objective === "unconditional";
}

/**
 * Checks a recipe and fills in its defaults.
 * @throws one sentence that names the field, what was given and what is accepted.
 */
export function parseDistillRecipe(json: unknown, name = "recipe"): DistillRecipe {
  const result = schema.safeParse(json);
  if (!result.success) throw new Error(`${name}: ${fieldError(result.error.issues[0], json)}`);
  const recipe = result.data;
  const problem = problemOf(recipe);
  if (problem) throw new Error(`${name}: ${problem}`);
  return recipe;
}

/** Whether the student learns to take a whole number of the stage's teacher's steps in one. */
function matchesSteps({ objective, teacher }: Phase, from: number): boolean {
  return objective !== "lcm" && objective !== "convert" && (teacher ?? from) === from;
}

/** Fields of a phase that mean something to a discriminator only. */
const ADVERSARIAL_FIELDS = ["renoise", "discriminatorRate", "discriminatorAlone"] as const;

/** Why a phase cannot start from its paths: they pass some of its times by. */
function offPath(
  { from, to, timesteps }: Stage,
  { paths, timesteps: own = timesteps, teacher = from }: Phase,
): string | undefined {
  if (!paths) return undefined;
  const { steps = teacher } = paths;
  const stops = new Set(Array.from({ length: steps }, (_, k) => Math.round((1000 * (k + 1)) / steps)));
  const missed = Array.isArray(own) ? own.find((t) => !stops.has(t)) : undefined;
  if (missed !== undefined) return `paths of ${steps} steps do not stop at the timestep ${missed}`;
  if (own === "all") return `paths of ${steps} steps do not stop at all timesteps; give a list, or "grid"`;
  return own === "grid" && steps % to !== 0
    ? `paths of ${steps} steps do not stop at those of ${to}`
    : undefined;
}

function problemOf({ stages, batch, microBatch }: DistillRecipe): string | undefined {
  let rank: number | undefined; // of the LoRA that goes from stage to stage
  let simple = false; // whether the student predicts clean latents
  for (const [i, stage] of stages.entries()) {
    const { from, to, phases } = stage;
    const at = `stages.${i}`;
    const earlier = stages.slice(0, i).map((s) => s.to);
    const uneven = from % to !== 0 || from <= to;
    const consistency = phases.some((p) => p.objective === "lcm"); // whose student may take any number of steps
    if (uneven && (!consistency || phases.some((p) => matchesSteps(p, from))))
      return `${at} goes from ${from} to ${to} steps; the first must be a multiple of the second`;
    if (i > 0 && from !== earlier[i - 1])
      return `${at}.from is ${from}; the stage before ends at ${earlier[i - 1]}`;
    if (simple) return `${at} needs a teacher that predicts noise; only the last stage may convert`;
    for (const [j, phase] of phases.entries()) {
      const here = `${at}.phases.${j}`;
      const size = phase.batch ?? batch;
      if (size % microBatch !== 0)
        return `${here}: batch ${size} is not a multiple of microBatch ${microBatch}`;
      const { teacher = from, renoise, objective, lora } = phase;
      if (lora && rank !== undefined && lora !== rank)
        return `${here}: a LoRA of rank ${lora} cannot go on from one of rank ${rank}`;
      if (phase.discriminatorAlone && lora && rank === undefined)
        return `${here}: no LoRA was trained before that could stay as it is; let the discriminator learn alone later`;
      rank = lora ?? rank;
      if (teacher !== from && !earlier.includes(teacher))
        return `${here}.teacher is ${teacher}; give one of ${[from, ...earlier].join(", ")}`;
      if (teacher !== from && teacher % to !== 0)
        return `${here}.teacher is ${teacher}, no multiple of ${to}`;
      const astray = offPath(stage, phase);
      if (astray) return `${here}: ${astray}`;
      if (renoise && renoise.weights.length !== renoise.timesteps.length)
        return `${here}.renoise has ${renoise.timesteps.length} timesteps and ${renoise.weights.length} weights`;
      const lost = ADVERSARIAL_FIELDS.find((field) => phase[field] !== undefined);
      if (lost && !isAdversarial(phase))
        return `${here}.${lost} is for adversarial objectives; ${objective} has no discriminator`;
      if (objective === "convert") {
        if (j > 0 || lora) return `${here}: convert comes first and trains the whole network`;
        simple = true;
      } else if (simple && lora) return `${here}: a LoRA cannot change what the base model predicts`;
    }
  }
  return undefined;
}

/** Reads a recipe file. Paths in it are relative to the working directory. */
export async function readDistillRecipe(path: string): Promise<DistillRecipe> {
  const recipe = parseDistillRecipe(await readJson(path), path);
  return { ...recipe, teacher: localPath(recipe.teacher) };
}
