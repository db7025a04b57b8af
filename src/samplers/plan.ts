/**
 * @file Which levels of noise a sampler visits: spacings of timesteps as in diffusers, and schedules of σ as in
 * k-diffusion and ComfyUI.
 */

import { type SchedulerConfig, SPACINGS, type Spacing, trainingSigmas } from "./schedule.ts";

/** What a sampler walks through. x = x₀ + σ·noise, in the convention of Karras et al. 2022. */
export interface Plan {
  /** Given to the network, from noise to picture, [steps]. */
  timesteps: Float32Array;
  /** σ at each timestep, [steps]. */
  sigmas: Float32Array;
  /** σ that each step goes to, [steps]. */
  targets: Float32Array;
  /** Lower σ from which new noise leads up to the target, [steps]; where no noise is added, the targets. */
  downs?: Float32Array;
  /** Unit noise is multiplied by this at the start. */
  initNoiseSigma: number;
}

type Levels = Pick<Plan, "timesteps" | "sigmas">;

/** By descending timesteps 0 … N−1, which need not be whole, or by σ from the largest of training to the smallest. */
type SigmaSchedule = { /** In stable-diffusion-webui. */ title: string } & (
  | { timesteps(N: number, steps: number): number[] }
  | { sigmas(max: number, min: number, steps: number): number[] }
);

const SIGMA_SCHEDULES = {
  /** Even timesteps, both ends included. */
  normal: {
    title: "Normal",
    timesteps: (N, steps) => ramp(steps).map((f) => (1 - f) * (N - 1)),
  },
  /** Whole timesteps, a stride apart. */
  simple: {
    title: "Simple",
    timesteps: (N, steps) => indices(steps).map((i) => N - 1 - Math.floor(i * (N / steps))),
  },
  /** Even timesteps, without the 0 that one more would reach. */
  sgm_uniform: {
    title: "SGM Uniform",
    timesteps: (N, steps) => indices(steps).map((i) => (1 - i / steps) * (N - 1)),
  },
  /** Even in σ^(1/ρ) with ρ = 7 (Karras et al. 2022, equation 5). */
  karras: {
    title: "Karras",
    sigmas(max, min, steps) {
      const [a, b] = [max, min].map((sigma) => sigma ** (1 / 7));
      return ramp(steps).map((f) => (a + f * (b - a)) ** 7);
    },
  },
  /** Even in log σ. */
  exponential: {
    title: "Exponential",
    sigmas: (max, min, steps) => ramp(steps).map((f) => max * (min / max) ** f),
  },
} satisfies Record<string, SigmaSchedule>;

/** A spacing of timesteps (diffusers), or a schedule of σ (k-diffusion, ComfyUI). */
export type Schedule = Spacing | keyof typeof SIGMA_SCHEDULES;
export const SCHEDULES = [...SPACINGS, ...(Object.keys(SIGMA_SCHEDULES) as (keyof typeof SIGMA_SCHEDULES)[])];

export function isSpacing(schedule: Schedule): schedule is Spacing {
  return SPACINGS.some((spacing) => spacing === schedule);
}

/** The name that stable-diffusion-webui has for a schedule; it knows no spacings. */
export function scheduleTitle(schedule: Schedule): string | undefined {
  return isSpacing(schedule) ? undefined : SIGMA_SCHEDULES[schedule].title;
}

/**
 * Timesteps and sigmas of a schedule. Between training timesteps σ is linear for spacings, as in diffusers, and
 * log σ for the others, as in k-diffusion. `spaced` gives the timesteps of a spacing.
 */
export function levelsOf(
  config: SchedulerConfig,
  steps: number,
  schedule: Schedule,
  spaced: (config: SchedulerConfig, steps: number, spacing: Spacing) => number[] = timestepsOf,
): Levels {
  if (!SCHEDULES.includes(schedule))
    throw new Error(`schedule is ${JSON.stringify(schedule)}; accepted are ${SCHEDULES.join(", ")}`);
  const all = trainingSigmas(config);
  if (isSpacing(schedule)) {
    const timesteps = Float32Array.from(spaced(config, steps, schedule));
    return { timesteps, sigmas: timesteps.map((t) => between(all, t)) };
  }
  const N = checkedSteps(config, steps);
  const logs = Float64Array.from(all, Math.log);
  const chosen = SIGMA_SCHEDULES[schedule];
  if ("timesteps" in chosen) {
    const timesteps = Float32Array.from(chosen.timesteps(N, steps));
    return { timesteps, sigmas: timesteps.map((t) => Math.exp(between(logs, t))) };
  }
  const sigmas = Float32Array.from(chosen.sigmas(all[N - 1], all[0], steps));
  return { timesteps: sigmas.map((sigma) => inverse(logs, Math.log(sigma))), sigmas };
}

/** The plan of a sampler whose steps meet, and end without noise; by default it starts at unit variance. */
export function planOf(levels: Levels, initNoiseSigma = Math.hypot(levels.sigmas[0], 1)): Plan {
  return { ...levels, targets: Float32Array.from([...levels.sigmas.subarray(1), 0]), initNoiseSigma };
}

/**
 * Timesteps among 0 … N−1, descending; linspace ones may lie between. Halves round as in numpy, whose steps are
 * rounded before they are multiplied. For a few step counts, 61 the least, numpy's trailing ones end with a
 * superfluous −1, which is left out.
 */
export function timestepsOf(config: SchedulerConfig, steps: number, spacing: Spacing): number[] {
  const N = checkedSteps(config, steps);
  const index = indices(steps);
  if (spacing === "linspace") {
    const step = (N - 1) / Math.max(1, steps - 1);
    return index.map((i) => (i > 0 && i === steps - 1 ? N - 1 : i * step)).reverse();
  }
  if (spacing === "leading")
    return index.map((i) => i * Math.floor(N / steps) + config.steps_offset).reverse();
  const step = N - (N - N / steps);
  return index.map((i) => roundHalfEven(N - i * step) - 1);
}

function checkedSteps({ num_train_timesteps: N }: SchedulerConfig, steps: number): number {
  if (!Number.isInteger(steps) || steps < 1 || steps > N)
    throw new Error(`steps is ${steps}; give a whole number from 1 to ${N}`);
  return N;
}

/** As numpy rounds. */
export function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

function indices(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/** Even values from 0 to 1; one alone is 0. */
function ramp(count: number): number[] {
  return indices(count).map((i) => i / Math.max(1, count - 1));
}

/** The value at a position that may lie between two, or beyond the last. */
function between(values: ArrayLike<number>, position: number): number {
  const at = Math.min(position, values.length - 1);
  const below = Math.floor(at);
  return below === at ? values[below] : values[below] + (at - below) * (values[below + 1] - values[below]);
}

/** The position of a value among ascending ones. */
function inverse(values: Float64Array, value: number): number {
  const above = values.findIndex((v) => v >= value);
  if (above < 0) return values.length - 1;
  return above === 0 ? 0 : above - (values[above] - value) / (values[above] - values[above - 1]);
}
