/** @file Samplers against diffusers' schedulers: plans, and trajectories of a network with a closed form. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import {
  alphasCumprod,
  type Network,
  noiseStream,
  parameterize,
  SAMPLERS,
  type Schedule,
  type SchedulerConfig,
  schedulerConfig,
} from "../../src/samplers/index.ts";
import { floats, sizeOf, toFloat32 } from "../../src/tensor/index.ts";
import { goldenJson, goldenTensors, worst } from "./golden.ts";

const BOUND = 1e-5;
/** Where diffusers' Euler steps down from σ = 4096 in float32, it loses digits itself. */
const ZERO_SNR_BOUND = 1e-4;
/** Of the noise that samplers add, as in record_samplers.py. */
const NOISE_SEED = 5;

/** As `network` of record_samplers.py. */
const network: Network = async ({ shape, data }, t) =>
  floats(
    shape,
    data.map((x) => 0.8 * x * (1 - t / 2000) + (0.1 * x * x) / (1 + x * x)),
  );

type Call = { sampler: string; config: SchedulerConfig; schedule?: Schedule; steps: number[] };
const calls = Object.entries((await goldenJson("samplers")) as Record<string, Call>);
const golden = await goldenTensors("samplers", "noise", "alphas", ...calls.map(([name]) => name));

describe.each(calls)("%s", (name, { sampler: kind, config: json, schedule, steps: numbers }) => {
  const sampler = SAMPLERS[kind];
  const config = schedulerConfig(json);
  const bound = /^euler.* zero-snr$/.test(name) ? ZERO_SNR_BOUND : BOUND;

  test.each(numbers)("%i steps", async (steps) => {
    const expected = (field: string) => golden[name][`${steps}.${field}`];
    const plan = sampler.plan(config, steps, schedule);
    if (!schedule) expect([...plan.timesteps]).toEqual([...expected("timesteps").data]);
    const fields = ["timesteps", "sigmas", "targets"] as const;
    const vectors = Object.fromEntries(fields.map((field) => [field, floats([steps], plan[field])]));
    const references = Object.fromEntries(fields.map((field) => [field, expected(field)]));
    const { error, where } = worst(vectors, references, 0.01); // all targets may be zero
    expect(error, where).toBeLessThan(BOUND);

    const noise = toFloat32(golden.noise.x);
    const start = floats(
      noise.shape,
      noise.data.map((v) => v * plan.initNoiseSigma),
    );
    const added = noiseStream({ seed: NOISE_SEED, shape: noise.shape });
    const run = sampler.sample(parameterize(network, config.prediction_type, plan), start, plan, added);
    const denoised = floats([steps, ...noise.shape]);
    let step = await run.next();
    for (; !step.done; step = await run.next())
      denoised.data.set(step.value.denoised.data, step.value.i * sizeOf(noise.shape));
    const actual = { denoised, latents: step.value };
    const values = worst(actual, { denoised: expected("denoised"), latents: expected("latents") });
    expect(values.error, values.where).toBeLessThan(bound);
  });
});

test.each(["scaled_linear", "linear"])("ᾱ of the %s schedule", (beta_schedule) => {
  const alphas = alphasCumprod(schedulerConfig({ beta_start: 0.00085, beta_end: 0.012, beta_schedule }));
  const expected = golden.alphas[beta_schedule];
  expect(worst({ alphas: floats([1000], alphas) }, { alphas: expected }).error).toBeLessThan(1e-6);
});
