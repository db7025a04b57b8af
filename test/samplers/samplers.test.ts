/** @file Properties of samplers, on data whose distribution is known: N(MEAN, DEVIATION²) at every position. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import {
  type Denoiser,
  type Network,
  noiseStream,
  type Plan,
  PREDICTION_TYPES,
  type PredictionType,
  parameterize,
  SAMPLERS,
  type Sampler,
  SCHEDULES,
  type Schedule,
  schedulerConfig,
} from "../../src/samplers/index.ts";
import { type FloatTensor, floats, Generator } from "../../src/tensor/index.ts";

const MEAN = 0.7;
const DEVIATION = 0.5;
const SDXL = { beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear", steps_offset: 1 };
const config = schedulerConfig(SDXL);
const SIGMA_MIN = 0.0292; // of SDXL
const samplers = Object.entries(SAMPLERS);
/** How errors shrink with the length of steps: UniPC's corrector adds an order to its predictor. */
const ORDERS = { euler: 1, ddim: 1, heun: 2, dpmpp_2m: 2, uni_pc: 3 };

/** The mean of x₀ given x, which a perfect network finds. */
function perfect({ sigmas }: Plan, deviation = DEVIATION): Denoiser {
  return async ({ shape, data }, i) => {
    const [noise, signal] = [sigmas[i] ** 2, deviation ** 2];
    return floats(
      shape,
      data.map((x) => (signal * x + noise * MEAN) / (signal + noise)),
    );
  };
}

/** What is sampled from some size of x, and x. */
async function run(sampler: Sampler, plan: Plan, size: number, denoise = perfect(plan)) {
  const noise = noiseStream({ seed: 1, shape: [1, 1, 1, size] });
  const deviation = Math.hypot(plan.sigmas[0], DEVIATION);
  const { shape, data } = noise();
  const x = floats(
    shape,
    data.map((v) => MEAN + deviation * v),
  );
  const steps = sampler.sample(denoise, x, plan, noise);
  let step = await steps.next();
  while (!step.done) step = await steps.next();
  return { x, end: step.value };
}

function rms(values: Float32Array): number {
  return Math.sqrt(values.reduce((sum, v) => sum + v ** 2, 0) / values.length);
}

/** Distance to where the differential equation leads, on which all deviations shrink alike, and then to E[x₀]. */
async function error(sampler: Sampler, steps: number): Promise<number> {
  const plan = sampler.plan(config, steps, "karras");
  const [first, last] = [plan.sigmas[0], plan.sigmas[steps - 1]].map((s) => Math.hypot(s, DEVIATION));
  const ratio = (last / first) * (DEVIATION / last) ** 2;
  const { x, end } = await run(sampler, plan, 64);
  return rms(end.data.map((v, i) => v - MEAN - (x.data[i] - MEAN) * ratio));
}

test.each(Object.entries(ORDERS))("%s follows the differential equation, order %i", async (name, order) => {
  const [coarse, fine] = [await error(SAMPLERS[name], 40), await error(SAMPLERS[name], 80)];
  expect(fine).toBeLessThan(0.05 / 4 ** (order - 1));
  expect(Math.log2(coarse / fine)).toBeGreaterThan(order - 0.1);
  expect(Math.log2(coarse / fine)).toBeLessThan(order + 0.1);
});

test.each(["euler_ancestral", "dpmpp_2m_sde"])("%s draws from the distribution", async (name) => {
  const { end } = await run(SAMPLERS[name], SAMPLERS[name].plan(config, 200, "karras"), 10_000);
  const mean = end.data.reduce((sum, v) => sum + v, 0) / end.data.length;
  expect(Math.abs(mean - MEAN)).toBeLessThan(0.02);
  expect(Math.abs(rms(end.data.map((v) => v - mean)) - DEVIATION)).toBeLessThan(0.02);
});

describe.each(samplers)("%s", (name, sampler) => {
  test("draws the one picture that there is, in any number of steps", async () => {
    // A consistency model takes x at timestep 0 as it is, and a trajectory ends there.
    const bound = ["lcm", "tcd"].includes(name) ? 5 * SIGMA_MIN : 1e-4;
    for (const schedule of SCHEDULES)
      for (const type of PREDICTION_TYPES)
        for (const steps of [1, 2, 5]) {
          const plan = sampler.plan(config, steps, schedule);
          const denoise = parameterize(predicting(type, plan, perfect(plan, 0)), type, plan);
          const { end } = await run(sampler, plan, 16, denoise);
          const apart = Math.max(...end.data.map((v) => Math.abs(v - MEAN)));
          expect(apart, `${schedule}, ${type}, ${steps} steps`).toBeLessThan(bound);
        }
  });

  test.each(SCHEDULES)("goes down, %s", (schedule) => {
    for (const steps of [1, 2, 7, 50]) {
      const { timesteps, sigmas, targets, downs = targets } = sampler.plan(config, steps, schedule);
      expect(timesteps.length).toBe(steps);
      for (let i = 0; i < steps; i++) {
        expect(timesteps[i]).toBeGreaterThanOrEqual(0);
        expect(timesteps[i]).toBeLessThan(config.num_train_timesteps);
        expect(sigmas[i]).toBeLessThan(sigmas[i - 1] ?? 15);
        expect(targets[i]).toBeLessThanOrEqual(sigmas[i]);
        expect(downs[i]).toBeLessThanOrEqual(targets[i]);
      }
    }
  });

  test("evaluates the network as often as it says", async () => {
    const plan = sampler.plan(config, 4);
    let count = 0;
    const denoise = perfect(plan);
    await run(sampler, plan, 4, (x, i) => {
      count++;
      return denoise(x, i);
    });
    expect(count).toBe(sampler.evaluations?.(4) ?? 4);
  });

  test("refuses step counts that make no picture, and schedules that are none", () => {
    for (const steps of [0, -1, 1.5, Number.NaN, 1001])
      expect(() => sampler.plan(config, steps)).toThrow(/^steps is .*; .*whole number from 1 to \d+/);
    expect(() => sampler.plan(config, 4, "cosine" as Schedule)).toThrow(
      'schedule is "cosine"; accepted are linspace, leading, trailing, normal, simple, sgm_uniform, karras, exponential',
    );
  });
});

/** The network that a denoiser came from. */
function predicting(type: PredictionType, { timesteps, sigmas }: Plan, denoise: Denoiser): Network {
  return async (sample, timestep) => {
    const i = timesteps.indexOf(timestep);
    const s = sigmas[i];
    const scale = Math.hypot(s, 1);
    const x = sample.data.map((v) => v * scale);
    const clean = await denoise(floats(sample.shape, x), i);
    const predicted = {
      sample: (x0: number) => x0,
      epsilon: (x0: number, j: number) => (x[j] - x0) / s,
      v_prediction: (x0: number, j: number) => (x[j] / scale - x0 * scale) / s,
    }[type];
    return floats(sample.shape, clean.data.map(predicted));
  };
}

test("ComfyUI's rule: what samplers add comes from seed + 1", () => {
  const shape = [2, 4, 8, 8];
  const noise = noiseStream({ seed: 5, shape, rule: "comfyui" });
  const [first, added] = [new Generator(5), new Generator(6)];
  const expected: FloatTensor[] = [first.randn(shape), added.randn(shape), added.randn(shape)];
  expect([noise(), noise(), noise()]).toEqual(expected);
});
