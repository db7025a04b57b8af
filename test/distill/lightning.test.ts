/** @file The objectives of distillation: steps along the flow, the teacher's walk, who learns from what. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { lcmPasses } from "../../src/distill/lcm.ts";
import {
  adversarialPasses,
  DISCRIMINATOR,
  type Level,
  move,
  msePasses,
  type Setting,
  teacherPass,
} from "../../src/distill/lightning.ts";
import {
  constant,
  grad,
  graph,
  input,
  inputsOf,
  nameOf,
  parametersOf,
  type Value,
} from "../../src/graph/index.ts";
import { unet } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { alphasCumprod, euler, guide, parameterize, schedulerConfig } from "../../src/samplers/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor } from "../../src/tensor/index.ts";
import { initialValues } from "../../src/train/optimizer.ts";
import { type Pass, trainedBy } from "../../src/train/parallel.ts";
import { tinyUNet } from "./tiny-model.ts";

const scheduler = schedulerConfig({
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  timestep_spacing: "trailing",
});
const alphas = alphasCumprod(scheduler);

const config = tinyUNet({
  sample_size: 8,
  cross_attention_dim: 6,
  addition_time_embed_dim: 4,
  projection_class_embeddings_input_dim: 28,
});
const B = 2;
const SHAPE = [B, 4, 8, 8];

function setting(changes: Partial<Setting> = {}): Setting {
  return {
    config,
    student: { scope: rootScope(), prediction: "epsilon" },
    teacher: { scope: rootScope("teacher"), prediction: "epsilon" },
    steps: 2,
    guidance: 1,
    batch: { batch: B, height: 8, width: 8, tokens: 5, pooled: 4 },
    ...changes,
  };
}

const g = new Generator(11);
const conditions = {
  hidden: g.randn([B, 5, 6]),
  pooled: g.randn([B, 4]),
  time_ids: floats([B, 6], new Float32Array(6 * B).fill(8)),
};
const empty = { empty_hidden: g.randn([1, 5, 6]), empty_pooled: g.randn([1, 4]) };

/** Levels of the same times for every sample; 0 is clean. */
function levels(...times: number[]): Record<string, FloatTensor> {
  const rows = (f: (t: number) => number) =>
    floats(
      [times.length, B],
      times.flatMap((t) => Array.from({ length: B }, () => f(t))),
    );
  return {
    alphas: rows((t) => (t === 0 ? 1 : Math.sqrt(alphas[t - 1]))),
    sigmas: rows((t) => (t === 0 ? 0 : Math.sqrt(1 - alphas[t - 1]))),
    timesteps: rows((t) => Math.max(0, t - 1)),
  };
}

/** Weights for everything that some values depend on, from their names. */
function weightsOf(values: readonly Value[]): Map<string, HostTensor> {
  const seeded = new Generator(3);
  return new Map(
    parametersOf(values)
      .sort((a, b) => (a.name < b.name ? -1 : 1))
      .map((p) => [p.name, initialValues(p.shape, p.init, () => seeded.random())]),
  );
}

async function run(
  outputs: Record<string, Value>,
  feeds: Record<string, HostTensor>,
  weights: ReadonlyMap<string, HostTensor>,
): Promise<Record<string, Float32Array>> {
  const built = graph(outputs);
  await using program = await compile(built, { weights, threads: 1 });
  const wanted = inputsOf(built).map(nameOf);
  const out = await program.run(Object.fromEntries(wanted.map((name) => [name, feeds[name]])));
  return Object.fromEntries(Object.entries(out).map(([k, t]) => [k, t.data as Float32Array]));
}

function largest(a: Float32Array, b: Float32Array): number {
  return Math.max(...a.map((v, i) => Math.abs(v - b[i])));
}

describe("move", () => {
  const level = (t: number): Level => {
    const value = (v: number) => constant(floats([1, 1, 1, 1], [v]));
    return {
      alpha: value(Math.sqrt(alphas[t - 1])),
      sigma: value(Math.sqrt(1 - alphas[t - 1])),
      timestep: constant(floats([1], [t - 1])),
    };
  };
  const [x, u] = ["x", "u"].map((name) => input(name, "float32", [1, 1, 1, 2]));
  const feeds = { x: floats([1, 1, 1, 2], [0.3, -1.2]), u: floats([1, 1, 1, 2], [0.7, 0.4]) };

  test.each(["epsilon", "sample", "v_prediction"] as const)(
    "by %s, to where it is goes nowhere",
    async (type) => {
      const { y } = await run({ y: move(x, u, type, level(600), level(600)) }, feeds, new Map());
      expect(largest(y, feeds.x.data)).toBeLessThan(1e-6);
    },
  );

  test("the three predictions are one step, of the formulas", async () => {
    const [from, to] = [level(750), level(500)];
    const [a, s] = [Math.sqrt(alphas[749]), Math.sqrt(1 - alphas[749])];
    const noise = u;
    const clean = x.sub(noise.mul(s)).div(a);
    const velocity = noise.mul(a).sub(clean.mul(s));
    const out = await run(
      {
        epsilon: move(x, noise, "epsilon", from, to),
        sample: move(x, clean, "sample", from, to),
        v: move(x, velocity, "v_prediction", from, to),
      },
      feeds,
      new Map(),
    );
    const expected = feeds.x.data.map(
      (v, i) =>
        (Math.sqrt(alphas[499]) * (v - s * feeds.u.data[i])) / a +
        Math.sqrt(1 - alphas[499]) * feeds.u.data[i],
    );
    for (const [name, y] of Object.entries(out)) expect(largest(y, expected), name).toBeLessThan(1e-5);
  });
});

test.each([1, 5])("the teacher's walk is what the sampler walks, at guidance %d", async (guidance) => {
  const { outputs } = teacherPass(setting({ steps: 4, guidance }));
  const { target } = outputs!;
  const weights = weightsOf([target]);
  const noise = new Generator(2).randn(SHAPE);
  const feeds = { sample: noise, ...levels(1000, 750, 500, 250, 0), ...conditions, ...empty };
  const got = await run({ target }, feeds, weights);

  const prediction = unet(rootScope("teacher"), config, {
    sample: input("sample", "float32", SHAPE),
    timestep: input("timestep", "float32", [B]),
    encoderHiddenStates: input("hidden", "float32", [B, 5, 6]),
    textEmbeds: input("pooled", "float32", [B, 4]),
    timeIds: input("time_ids", "float32", [B, 6]),
  });
  await using program = await compile(graph({ prediction }), { weights, threads: 1 });
  const twice = (t: FloatTensor) => floats([B, ...t.shape.slice(1)], [...t.data, ...t.data]);
  const evaluate = async (sample: FloatTensor, t: number, prompt: Record<string, FloatTensor>) =>
    (
      await program.run({
        sample,
        timestep: floats([B], new Float32Array(B).fill(t)),
        time_ids: conditions.time_ids,
        ...prompt,
      })
    ).prediction as FloatTensor;
  const network = async (sample: FloatTensor, t: number) => {
    const { hidden, pooled } = conditions;
    const conditional = await evaluate(sample, t, { hidden, pooled });
    if (guidance <= 1) return conditional;
    const none = { hidden: twice(empty.empty_hidden), pooled: twice(empty.empty_pooled) };
    return guide(conditional, await evaluate(sample, t, none), guidance);
  };
  const plan = euler.plan(scheduler, 4);
  expect(Array.from(plan.timesteps)).toEqual([999, 749, 499, 249]);
  // The sampler's x is x_t/√ᾱ, and starts from pure noise at unit variance.
  const start = floats(
    SHAPE,
    noise.data.map((v) => v * Math.sqrt(plan.sigmas[0] ** 2 + 1)),
  );
  const denoise = parameterize(network, "epsilon", plan);
  const walk = euler.sample(
    denoise,
    start,
    plan,
    () => Promise.reject(new Error("Euler draws no noise")) as never,
  );
  let step = await walk.next();
  while (!step.done) step = await walk.next();
  const scale = Math.max(...step.value.data.map(Math.abs));
  expect(largest(got.target, step.value.data) / scale).toBeLessThan(1e-4);
});

describe("who learns", () => {
  const keys = (pass: Pass) => trainedBy(pass, new Map(Object.entries(frozenOf(pass)))).map((p) => p.name);
  const frozenOf = (pass: Pass) =>
    Object.fromEntries(
      parametersOf([pass.loss!])
        .filter((p) => p.name.startsWith("teacher."))
        .map((p) => [p.name, true]),
    );

  test.each([true, false])("student and discriminator apart; conditional: %s", (conditional) => {
    const [teacher, student, critic] = adversarialPasses(setting(), { conditional, renoise: false });
    expect(teacher.loss).toBeUndefined();
    const own = keys(student);
    expect(own.filter((k) => k.startsWith(DISCRIMINATOR) || k.startsWith("teacher."))).toEqual([]);
    expect(own).toContain("conv_out.weight");
    expect(keys(critic).filter((k) => !k.startsWith(DISCRIMINATOR))).toEqual([]);
    expect(keys(critic)).toContain("discriminator.encoder.mid_block.resnets.1.conv2.weight");
    // The student sees the teacher through the discriminator alone.
    expect(inputsOf(graph({ loss: student.loss! })).map(nameOf)).not.toContain("target");
    const shape = (name: string) =>
      parametersOf([critic.loss!]).find((p) => p.name === `discriminator.head.${name}.weight`)?.shape;
    expect(shape("convs.0")).toEqual([8, 8, 4, 4]);
    expect(shape("source")).toEqual(conditional ? [8, 8, 4, 4] : undefined);
  });

  test("heads at all resolutions add to the middle one's", () => {
    const options = { conditional: true, renoise: false } as const;
    const shapes = (heads: "mid" | "all") =>
      Object.fromEntries(
        trainedBy(adversarialPasses(setting(), { ...options, heads })[2])
          .filter(({ name }) => name.includes(".head"))
          .map(({ name, shape }) => [name, shape]),
      );
    const all = shapes("all");
    expect(all).toMatchObject(shapes("mid"));
    expect(all["discriminator.heads.0.convs.0.weight"]).toEqual([4, 4, 4, 4]); // of the first block, 8×8
    expect(Object.keys(all).some((k) => k.includes("heads.1."))).toBe(config.block_out_channels.length > 2);
  });

  test("every weight of the discriminator that it is given gets a gradient, and the student's step leaves it be", async () => {
    const [, student, critic] = adversarialPasses(setting(), {
      conditional: true,
      renoise: true,
      heads: "all",
    });
    const weights = weightsOf([student.loss!, critic.loss!]);
    const r = new Generator(8);
    const feeds = {
      ...levels(500, 375, 250),
      ...conditions,
      sample: r.randn(SHAPE),
      target: r.randn(SHAPE),
      fake: r.randn(SHAPE),
      noise: r.randn(SHAPE),
      noise_alpha: floats([B], [0.5, 0.9]),
      noise_sigma: floats([B], [0.8, 0.4]),
      noise_timestep: floats([B], [600, 200]),
    };
    const parameters = trainedBy(critic);
    const gradients = grad(
      critic.loss!,
      parameters.map((p) => p.value),
    );
    const out = await run(
      Object.fromEntries(parameters.map((p, i) => [`d.${p.name}`, gradients[i]])),
      feeds,
      weights,
    );
    const silent = Object.entries(out).filter(([, d]) => d.every((v) => v === 0));
    expect(silent.map(([k]) => k)).toEqual([]);
  });
});

test("the losses of both sides are those of the paper", async () => {
  const [, student, critic] = adversarialPasses(setting(), { conditional: false, renoise: false });
  const weights = weightsOf([student.loss!, critic.loss!]);
  const r = new Generator(9);
  const sample = r.randn(SHAPE);
  const feeds = {
    ...levels(500, 375, 250),
    ...conditions,
    sample,
    target: r.randn(SHAPE),
    fake: r.randn(SHAPE),
  };
  const { fake } = await run({ fake: student.outputs!.fake }, feeds, weights);
  const given = { ...feeds, fake: floats(SHAPE, fake) };
  const values = await run({ student: student.loss! }, given, weights);
  // p of the same latents on both sides: −log p − log(1 − p), with the student's −log p̂ known
  const same = { ...given, target: given.fake };
  const both = await run({ loss: critic.loss!, ...critic.metrics }, same, weights);
  const p = Math.exp(-values.student[0]);
  expect(p).toBeGreaterThan(0.01);
  // a mean over two samples: Jensen's inequality holds, and for near-equal logits the values agree
  expect(both.loss[0]).toBeGreaterThanOrEqual(-Math.log(p) - Math.log(1 - p) - 1e-3);
  expect(both.loss[0]).toBeLessThan(-Math.log(p) - Math.log(1 - p) + 0.1);
  // what is taken for real as the teacher's is taken for real as the student's
  expect(both.accuracy_real[0] + both.accuracy_fake[0]).toBeCloseTo(1, 6);
});

test("the exact loss is zero where the student is the teacher, over one step", async () => {
  const [teacher, { loss }] = msePasses(setting({ steps: 1 }));
  const weights = weightsOf([loss!]);
  for (const [k, t] of [...weights]) weights.set(`teacher.${k}`, t);
  const feeds = { ...levels(500, 250), ...conditions, sample: new Generator(4).randn(SHAPE) };
  const { target } = await run({ target: teacher.outputs!.target }, feeds, weights);
  const reached = { ...feeds, target: floats(SHAPE, target) };
  expect((await run({ loss: loss! }, reached, weights)).loss[0]).toBeLessThan(1e-9);
  const off = {
    ...feeds,
    target: floats(
      SHAPE,
      target.map((v) => v + 0.5),
    ),
  };
  expect((await run({ loss: loss! }, off, weights)).loss[0]).toBeCloseTo(0.25, 4);
});

test("consistency holds at the end of the trajectory by construction, and the target has no gradient", async () => {
  const [, { loss }] = lcmPasses(setting({ steps: 1 }));
  const weights = weightsOf([loss!]);
  const sample = new Generator(4).randn(SHAPE);
  const rows = (a: number, b: number) => floats([2, B], [a, a, b, b]);
  const feeds = { ...levels(20, 0), ...conditions, sample, skip: rows(1, 1), out: rows(0, 0) };
  // f(x, 0) = x: with both points at the boundary the loss compares the latents themselves
  const { loss: zero } = await run({ loss: loss! }, { ...feeds, target: sample }, weights);
  expect(zero[0]).toBeLessThan(1e-6);
  const shifted = floats(
    SHAPE,
    sample.data.map((v) => v + 0.2),
  );
  const { loss: some } = await run({ loss: loss! }, { ...feeds, target: shifted }, weights);
  expect(some[0]).toBeCloseTo(Math.sqrt(0.04 + 1e-6) - 1e-3, 4);
  const parameters = trainedBy({ name: "", loss });
  const gradients = grad(
    loss!,
    parameters.map((p) => p.value),
  );
  const onTarget = { ...feeds, skip: rows(1, 0), out: rows(0, 1), target: shifted };
  const out = await run(
    Object.fromEntries(parameters.map((p, i) => [`d.${p.name}`, gradients[i]])),
    onTarget,
    weights,
  );
  expect(Math.max(...Object.values(out).map((d) => Math.max(...d.map(Math.abs))))).toBe(0);
});
