/** @file The noise schedule of SDXL and its timesteps, in the arithmetic of diffusers' schedulers. */

import { z } from "zod";

export const PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"] as const;
export const SPACINGS = ["linspace", "leading", "trailing"] as const;

const schema = z.object({
  num_train_timesteps: z.int().min(2).default(1000),
  beta_start: z.number().positive().default(0.0001),
  beta_end: z.number().positive().default(0.02),
  beta_schedule: z.enum(["linear", "scaled_linear"]).default("linear"),
  prediction_type: z.enum(PREDICTION_TYPES).default("epsilon"),
  timestep_spacing: z.enum(SPACINGS).default("linspace"),
  steps_offset: z.int().min(0).default(0),
  rescale_betas_zero_snr: z.boolean().default(false),
  /** Of DDIM: whether the last step ends at no noise, or at that of timestep 0. */
  set_alpha_to_one: z.boolean().default(true),
});

export type SchedulerConfig = z.infer<typeof schema>;
export type PredictionType = SchedulerConfig["prediction_type"];
/** How the timesteps of a sampler are chosen among those of training (Lin et al. 2024, Table 2). */
export type Spacing = SchedulerConfig["timestep_spacing"];

/**
 * Reads scheduler_config.json with diffusers' defaults; fields that change nothing here are ignored.
 * @throws a sentence that names the field.
 */
export function schedulerConfig(json: unknown): SchedulerConfig {
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0];
  const given = (json as Record<string, unknown> | null)?.[String(path[0])];
  throw new Error(`scheduler config: ${path.join(".") || "file"} is ${JSON.stringify(given)}; ${message}`);
}

/** `count` values from a to b as torch.linspace gives them in float32: from both ends. */
function linspace(a: number, b: number, count: number): number[] {
  const f = Math.fround;
  const step = f(f(f(b) - f(a)) / f(count - 1));
  return Array.from({ length: count }, (_, i) =>
    i < count / 2 ? f(f(a) + f(step * i)) : f(f(b) - f(step * (count - 1 - i))),
  );
}

/** ᾱ of every training timestep, [num_train_timesteps]. */
export function alphasCumprod(config: SchedulerConfig): Float32Array {
  const { num_train_timesteps: N, beta_start, beta_end, beta_schedule } = config;
  const f = Math.fround;
  const betas =
    beta_schedule === "linear"
      ? linspace(beta_start, beta_end, N)
      : linspace(Math.sqrt(beta_start), Math.sqrt(beta_end), N).map((b) => f(b * b));
  let product = 1;
  const out = Float32Array.from(betas, (beta) => {
    product *= f(1 - beta);
    return product;
  });
  return config.rescale_betas_zero_snr ? zeroTerminalSnr(out) : out;
}

/** Shifts and scales √ᾱ so that it ends at zero (Lin et al. 2024, Algorithm 1). */
function zeroTerminalSnr(alphas: Float32Array): Float32Array {
  const roots = Array.from(alphas, Math.sqrt);
  const [first, last] = [roots[0], roots[roots.length - 1]];
  const out = Float32Array.from(roots, (r) => (((r - last) * first) / (first - last)) ** 2);
  out[out.length - 1] = 2 ** -24; // as diffusers, so that its sigma is finite: 4096
  return out;
}

/** Noise deviation relative to the signal: √((1 − ᾱ)/ᾱ). */
export function sigmaOf(alphaCumprod: number): number {
  return Math.sqrt((1 - alphaCumprod) / alphaCumprod);
}

/** What a sampler walks through. x = x₀ + σ·noise, in the convention of Karras et al. 2022. */
export interface Plan {
  /** Given to the network, from noise to picture, [steps]. */
  timesteps: Float32Array;
  /** σ at each timestep, [steps]. */
  sigmas: Float32Array;
  /** σ that each step goes to, [steps]. */
  targets: Float32Array;
  /** Unit noise is multiplied by this at the start. */
  initNoiseSigma: number;
}

/**
 * Timesteps among 0 … N−1, descending; linspace ones may lie between. Halves round as in numpy, whose steps are
 * rounded before they are multiplied. For a few step counts, 61 the least, numpy's trailing ones end with a
 * superfluous −1, which is left out.
 */
export function timestepsOf(config: SchedulerConfig, steps: number, spacing: Spacing): number[] {
  const N = config.num_train_timesteps;
  if (!Number.isInteger(steps) || steps < 1 || steps > N)
    throw new Error(`steps is ${steps}; give a whole number from 1 to ${N}`);
  const index = Array.from({ length: steps }, (_, i) => i);
  if (spacing === "linspace") {
    const step = (N - 1) / Math.max(1, steps - 1);
    return index.map((i) => (i > 0 && i === steps - 1 ? N - 1 : i * step)).reverse();
  }
  if (spacing === "leading")
    return index.map((i) => i * Math.floor(N / steps) + config.steps_offset).reverse();
  const step = N - (N - N / steps);
  return index.map((i) => roundHalfEven(N - i * step) - 1);
}

/** As numpy rounds. */
export function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}
