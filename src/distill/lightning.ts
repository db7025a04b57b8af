/**
 * @file The objectives of SDXL-Lightning (Lin et al. 2024, §2–3) as passes of a training step: a frozen teacher
 * walks n steps along the probability flow, the student must get there in one.
 * B batch, n steps of the teacher, x latents [B,4,h,w], T text tokens, D text width, P pooled width.
 */

import { input, type Value } from "../graph/index.ts";
import {
  type DiscriminatorHeads,
  discriminator,
  type UNetConfig,
  type UNetInputs,
  unet,
} from "../models/index.ts";
import { rootScope, type Scope } from "../nn/index.ts";
import { concat, less, scalar } from "../ops/index.ts";
import type { PredictionType } from "../samplers/index.ts";
import type { Pass, UNetBatch } from "../train/index.ts";

/** x = α·x₀ + σ·ε at a time of each sample. */
export interface Level {
  alpha: Value; // √ᾱ, [B,1,1,1]
  sigma: Value; // √(1 − ᾱ), [B,1,1,1]
  timestep: Value; // [B]
}

/** What is known beside the latents. */
export interface Conditions {
  hidden: Value; // [B,T,D]
  pooled: Value; // [B,P]
  timeIds: Value; // [B,6]
}

/** A network that predicts in its own way. */
export interface Predictor {
  scope: Scope;
  prediction: PredictionType;
}

/** What goes into every objective. */
export interface Setting {
  config: UNetConfig;
  student: Predictor;
  teacher: Predictor;
  /** Steps of the teacher for one of the student. */
  steps: number;
  /** Classifier-free guidance of the teacher; up to 1 it is off. */
  guidance: number;
  batch: UNetBatch;
}

/** Clean latents and noise that an output of a network means (Salimans & Ho 2022, appendix D). */
export function meaning(
  x: Value,
  u: Value,
  { alpha, sigma }: Level,
  prediction: PredictionType,
): [Value, Value] {
  if (prediction === "epsilon") return [x.sub(sigma.mul(u)).div(alpha), u];
  if (prediction === "sample") return [u, x.sub(alpha.mul(u)).div(sigma)];
  return [alpha.mul(x).sub(sigma.mul(u)), sigma.mul(x).add(alpha.mul(u))];
}

/** move(x, u, t, t′): the step along the flow that an output means (§2.1), from one level to another. */
export function move(x: Value, u: Value, prediction: PredictionType, from: Level, to: Level): Value {
  const [clean, noise] = meaning(x, u, from, prediction);
  return to.alpha.mul(clean).add(to.sigma.mul(noise));
}

/** The shared inputs of all objectives; `levels` are those of the teacher's path, n + 1 of them. */
export function sharedInputs({ batch: size, config }: Setting, n: number) {
  const { batch: B, height, width, tokens, pooled } = size;
  const shape = [B, config.in_channels, height, width];
  const conditions: Conditions = {
    hidden: input("hidden", "float32", [B, tokens, config.cross_attention_dim]),
    pooled: input("pooled", "float32", [B, pooled]),
    timeIds: input("time_ids", "float32", [B, 6]),
  };
  const [timesteps, alphas, sigmas] = ["timesteps", "alphas", "sigmas"].map((name) =>
    input(name, "float32", [n + 1, B]),
  );
  const levels = Array.from({ length: n + 1 }, (_, k): Level => {
    const row = (v: Value) => v.slice(0, k, k + 1).squeeze(0);
    const [alpha, sigma] = [alphas, sigmas].map((v) => row(v).unsqueeze(1, 2, 3));
    return { alpha, sigma, timestep: row(timesteps) };
  });
  return { shape, conditions, levels, sample: input("sample", "float32", shape) };
}

export function networkInputs(
  sample: Value,
  timestep: Value,
  { hidden, pooled, timeIds }: Conditions,
): UNetInputs {
  return { sample, timestep, encoderHiddenStates: hidden, textEmbeds: pooled, timeIds };
}

/** A network's output, guided by the empty prompt where that is asked. */
function predict(
  { config, guidance }: Pick<Setting, "config" | "guidance">,
  scope: Scope,
  x: Value,
  { timestep }: Level,
  conditions: Conditions,
): Value {
  if (guidance <= 1) return unet(scope, config, networkInputs(x, timestep, conditions));
  const B = x.shape[0] as number;
  const twice = (v: Value) => concat([v, v], 0);
  const withEmpty = (name: string, v: Value) => {
    const [, ...rest] = v.shape as number[];
    return concat([v, input(name, "float32", [1, ...rest]).expand(v.shape)], 0);
  };
  const both = unet(
    scope,
    config,
    networkInputs(twice(x), twice(timestep), {
      hidden: withEmpty("empty_hidden", conditions.hidden),
      pooled: withEmpty("empty_pooled", conditions.pooled),
      timeIds: twice(conditions.timeIds),
    }),
  );
  const [conditional, empty] = [both.slice(0, 0, B), both.slice(0, B, 2 * B)];
  return empty.add(conditional.sub(empty).mul(guidance));
}

/**
 * The teacher's walk (§2.3): from `sample`, x_t, to `target`, x_{t−ns}. Where its path has reached clean latents, a
 * step stays there.
 */
export function teacherPass(setting: Setting): Pass {
  const { teacher, steps } = setting;
  const { sample, levels, conditions } = sharedInputs(setting, steps);
  let x = sample;
  for (let k = 0; k < steps; k++) {
    const u = predict(setting, teacher.scope, x, levels[k], conditions);
    x = move(x, u, teacher.prediction, levels[k], levels[k + 1]);
  }
  return { name: "teacher", outputs: { target: x } };
}

/** The student's one step x̂_{t−ns}, and everything that it was made from. */
function studentStep(setting: Setting) {
  const { config, student, steps } = setting;
  const given = sharedInputs(setting, steps);
  const { sample, levels, conditions } = given;
  const u = predict({ config, guidance: 1 }, student.scope, sample, levels[0], conditions);
  return { ...given, reached: move(sample, u, student.prediction, levels[0], levels[steps]) };
}

/** ‖x̂_{t−ns} − x_{t−ns}‖² (§2.3), a mean over values. */
export function msePasses(setting: Setting): Pass[] {
  const { reached, shape } = studentStep(setting);
  const loss = reached
    .sub(input("target", "float32", shape))
    .pow(2)
    .mean();
  return [teacherPass(setting), { name: "", loss }];
}

/** ln(1 + eˣ), without overflow: −ln σ(−x). */
function softplus(x: Value): Value {
  return x.maximum(0).add(x.abs().neg().exp().add(1).log());
}

function shareBelowZero(x: Value): Value {
  return less(x, scalar(0, "float32")).cast("float32").mean();
}

/** Parameters of the discriminator start with this, those of its encoder with the next. */
export const DISCRIMINATOR = "discriminator.";
export const ENCODER = `${DISCRIMINATOR}encoder.`;

export interface AdversarialOptions {
  /** D(x_{t−ns}, x_t, …) (§3.2), or the relaxed D′(x_{t−ns}, …) (§3.4). */
  conditional: boolean;
  /** Whether D sees its latents noised again, at levels of their own (§3.7, the one-step stage). */
  renoise: boolean;
  /** Where D's heads look; default at the middle block. */
  heads?: DiscriminatorHeads;
  /** D's learning rate as a multiple of the student's; default 1. */
  rate?: number;
  /** Whether D learns alone, what a student that stays does. */
  alone?: boolean;
}

/**
 * The teacher's walk; the student's update on L_G = −log p̂ with D frozen; D's on L_D = −log p − log(1 − p̂) with the
 * student frozen, on the same latents. p is D's probability that x_{t−ns} came from the teacher.
 */
export function adversarialPasses(
  setting: Setting,
  { conditional, renoise, heads, rate, alone }: AdversarialOptions,
): Pass[] {
  const { config, steps } = setting;
  const { sample, shape, levels, conditions, reached } = studentStep(setting);
  const B = shape[0];
  const at = (name: string) => input(name, "float32", [B]);
  const noised = (x: Value) =>
    at("noise_alpha")
      .unsqueeze(1, 2, 3)
      .mul(x)
      .add(
        at("noise_sigma")
          .unsqueeze(1, 2, 3)
          .mul(input("noise", "float32", shape)),
      );
  const source = networkInputs(sample, levels[0].timestep, conditions);
  const logit = (x: Value) => {
    const view = renoise
      ? networkInputs(noised(x), at("noise_timestep"), conditions)
      : networkInputs(x, levels[steps].timestep, conditions);
    return discriminator(rootScope("discriminator"), config, conditional ? [view, source] : [view], heads);
  };
  const isDiscriminator = (key: string) => key.startsWith(DISCRIMINATOR);
  const [real, fake] = ["target", "fake"].map((name) => logit(input(name, "float32", shape)));
  const student: Pass = {
    name: "",
    loss: softplus(logit(reached).neg()).mean(),
    trains: (key) => !isDiscriminator(key),
    outputs: { fake: reached },
  };
  return [
    teacherPass(setting),
    alone ? { name: "student", outputs: student.outputs } : student,
    {
      name: alone ? "" : "discriminator",
      loss: softplus(real.neg()).add(softplus(fake)).mean(),
      metrics: { accuracy_real: shareBelowZero(real.neg()), accuracy_fake: shareBelowZero(fake) },
      trains: isDiscriminator,
      rate,
    },
  ];
}
