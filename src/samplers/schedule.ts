/** @file The noise schedule that a model was trained with, in the arithmetic of diffusers' schedulers. */

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
 * @throws a sentence that names the field, and for models that were trained on no such schedule.
 */
export function schedulerConfig(json: unknown): SchedulerConfig {
  const { _class_name: name, trained_betas } = (json ?? {}) as Record<string, unknown>;
  if (/^(EDM|FlowMatch)/.test(String(name)))
    throw new Error(
      `scheduler config: the class is ${name}; fewstep runs models trained on betas, not those of EDM or of flow matching`,
    );
  if (trained_betas != null)
    throw new Error("scheduler config: trained_betas are given; fewstep takes beta_start and beta_end");
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

/** Noise deviation relative to the signal, σ = √((1 − ᾱ)/ᾱ), of every training timestep, [num_train_timesteps]. */
export function trainingSigmas(config: SchedulerConfig): Float32Array {
  return alphasCumprod(config).map((a) => Math.sqrt((1 - a) / a));
}
