/** @file Data-parallel training computes what one program on the whole batch computes. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { input, type ParameterInfo, parameter, parametersOf, type Value } from "../../src/graph/index.ts";
import { gemm } from "../../src/ops/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, Generator, type HostTensor } from "../../src/tensor/index.ts";
import { adamw, muon, type Optimizer, ParallelTrainer, trainStep } from "../../src/train/index.ts";
import { initialValues, scalarFeeds } from "../../src/train/optimizer.ts";
import type { Loss, Pass } from "../../src/train/parallel.ts";
import { tinyBatch, tinyLoss } from "./tiny.ts";

type Tensors = Record<string, HostTensor>;

const LEARNING_RATE = 0.01;
const EMA_DECAY = 0.7;

interface Run {
  optimizer: Optimizer;
  clipNorm?: number;
  steps: number;
}

interface Trace {
  loss: number[];
  l1: number[];
  norm: number[];
  /** Parameters, state and averages after the last step. */
  tensors: Tensors;
}

function start(loss: Value): Tensors {
  const g = new Generator(5);
  const random = () => g.random();
  const fresh = (p: ParameterInfo) => initialValues(p.shape, p.init, random);
  return Object.fromEntries(parametersOf([loss]).map((p) => [p.name, fresh(p)]));
}

/** A step that is one loss. */
const one = (loss: Loss): Pass[] => [{ name: "", ...loss }];

/** The whole-step program on batches of `batch` samples. */
async function whole(batch: number, { optimizer, clipNorm, steps }: Run): Promise<Trace> {
  const { loss, metrics } = tinyLoss(batch);
  const { graph, state } = trainStep(loss, { optimizer, clipNorm, ema: true }, metrics);
  await using program = await compile(graph, { state, threads: 1 });
  for (const [k, t] of Object.entries(start(loss))) {
    program.set(k, t);
    program.set(`ema.${k}`, t);
  }
  const trace: Trace = { loss: [], l1: [], norm: [], tensors: {} };
  for (let t = 0; t < steps; t++) {
    const scalars = { ...optimizer.scalars(t + 1, LEARNING_RATE), clip: 1, emaDecay: EMA_DECAY };
    const out = await program.run({ ...tinyBatch(t * batch, batch), ...scalarFeeds(scalars) });
    trace.loss.push(Number(out.loss.data[0]));
    trace.l1.push(Number(out.l1.data[0]));
    trace.norm.push(Number(out.grad_norm.data[0]));
  }
  for (const name of program.stateNames) trace.tensors[name] = await program.get(name);
  return trace;
}

/** The same samples, split over replicas and micro-batches. */
async function split(
  batch: number,
  { replicas, accumulate = 1 }: { replicas: number; accumulate?: number },
  { optimizer, clipNorm, steps }: Run,
): Promise<Trace> {
  const micro = batch / replicas / accumulate;
  const { loss, metrics } = tinyLoss(micro);
  await using trainer = await ParallelTrainer.create({ passes: one({ loss, metrics }), optimizer, replicas });
  await trainer.load(start(loss));
  const trace: Trace = { loss: [], l1: [], norm: [], tensors: {} };
  for (let t = 0; t < steps; t++) {
    const batches = Array.from({ length: replicas }, (_, r) =>
      Array.from({ length: accumulate }, (_, m) =>
        tinyBatch(t * batch + (r * accumulate + m) * micro, micro),
      ),
    );
    const scalars = { ...optimizer.scalars(t + 1, LEARNING_RATE), emaDecay: EMA_DECAY };
    const { metrics: got } = await trainer.step(batches, scalars, clipNorm);
    trace.loss.push(got.loss);
    trace.l1.push(got.l1);
    trace.norm.push(got.grad_norm);
  }
  trace.tensors = await trainer.save();
  return trace;
}

/** Largest difference, relative to the largest value. */
function distance(a: HostTensor, b: HostTensor): number {
  expect(a.shape).toEqual(b.shape);
  let [worst, scale] = [0, 1e-12];
  for (let i = 0; i < b.data.length; i++) {
    worst = Math.max(worst, Math.abs(Number(a.data[i]) - Number(b.data[i])));
    scale = Math.max(scale, Math.abs(Number(b.data[i])));
  }
  return worst / scale;
}

/** `rounding` is how much the optimiser may enlarge differences of the order of gradients' addition. */
function expectSame(actual: Trace, expected: Trace, rounding = 1): void {
  for (const k of ["loss", "l1", "norm"] as const)
    expected[k].forEach((v, t) => {
      expect(Math.abs(actual[k][t] / v - 1), `${k} at step ${t}`).toBeLessThan(1e-5 * rounding);
    });
  expect(Object.keys(actual.tensors).sort()).toEqual(Object.keys(expected.tensors).sort());
  for (const [k, t] of Object.entries(expected.tensors))
    expect(distance(actual.tensors[k], t), k).toBeLessThan(2e-5 * rounding);
}

// eps keeps Adam from dividing rounding by rounding where a gradient is almost zero.
const options = { eps: 1e-3, weightDecay: 0 };
const plain: Run = { optimizer: adamw(options), steps: 6 };

test("two replicas are one program on both batches", async () => {
  const expected = await whole(8, plain);
  expect(expected.loss[5]).toBeLessThan(expected.loss[0]);
  expectSame(await split(8, { replicas: 2 }, plain), expected);
});

test("gradient accumulation and three replicas change nothing", async () => {
  const expected = await whole(12, plain);
  expectSame(await split(12, { replicas: 1, accumulate: 2 }, plain), expected);
  expectSame(await split(12, { replicas: 3, accumulate: 2 }, plain), expected);
});

test("the gradient is clipped by its norm over everything", async () => {
  const clipped = { ...plain, clipNorm: 0.4 };
  const expected = await whole(8, clipped);
  const free = await whole(8, plain);
  expect(Math.min(...expected.norm)).toBeGreaterThan(0.4);
  expect(expected.norm[0]).toBe(free.norm[0]); // reported before clipping
  expect(
    distance(expected.tensors["exp_avg.conv.weight"], free.tensors["exp_avg.conv.weight"]),
  ).toBeGreaterThan(0.1);
  expectSame(await split(8, { replicas: 2 }, clipped), expected);
  // A bound above the norm does nothing.
  expect(await split(8, { replicas: 2 }, { ...plain, clipNorm: 1e6 })).toEqual(
    await split(8, { replicas: 2 }, plain),
  );
});

test("no first moment, as the adversarial stages train", async () => {
  const run = { ...plain, optimizer: adamw({ ...options, betas: [0, 0.99] }) };
  expectSame(await split(8, { replicas: 2 }, run), await whole(8, run));
});

test("matrices are updated whole, by one replica each", async () => {
  const run = { ...plain, optimizer: muon({ ...options, weightDecay: 0.1 }), clipNorm: 0.4, steps: 2 };
  const expected = await whole(8, run);
  const adam = await whole(8, { ...run, optimizer: adamw({ ...options, weightDecay: 0.1 }) });
  expect(distance(expected.tensors["conv.weight"], adam.tensors["conv.weight"])).toBeGreaterThan(0.01);
  const { tensors, ...rest } = await split(8, { replicas: 2 }, run);
  // The program of a whole step has no second moment of matrices; the trainer's flat arrays leave it zero.
  for (const k of ["exp_avg_sq.conv.weight", "exp_avg_sq.out.weight"]) {
    expect(tensors[k].data.every((v) => v === 0)).toBe(true);
    delete tensors[k];
  }
  // Small singular values of a gradient, where rounding lives, grow by up to 3.4445⁵ = 485.
  expectSame({ ...rest, tensors }, expected, 485);
});

test("weights decay, biases and norms do not", async () => {
  const one = { ...plain, steps: 1 };
  const decaying = { ...one, optimizer: adamw({ ...options, weightDecay: 5 }) };
  const [got, free, decayed] = [
    await split(8, { replicas: 2 }, decaying),
    await whole(8, one),
    await whole(8, decaying),
  ];
  for (const k of ["conv.weight", "out.weight"]) {
    expect(distance(got.tensors[k], decayed.tensors[k]), k).toBeLessThan(1e-5);
    expect(distance(got.tensors[k], free.tensors[k]), k).toBeGreaterThan(0.01);
  }
  for (const k of ["conv.bias", "norm.weight", "norm.bias", "out.bias"])
    expect(distance(got.tensors[k], free.tensors[k]), k).toBeLessThan(1e-5);
});

test("the average follows the parameters", async () => {
  const { tensors } = await split(8, { replicas: 2 }, { ...plain, steps: 1 });
  for (const [k, t] of Object.entries(start(tinyLoss(1).loss))) {
    const expected = Float32Array.from(
      t.data as Float32Array,
      (old, i) => EMA_DECAY * old + (1 - EMA_DECAY) * Number(tensors[k].data[i]),
    );
    expect(distance(tensors[`ema.${k}`], floats(t.shape, expected)), k).toBeLessThan(1e-6);
  }
});

test("tensors of several chunks reach every replica", async () => {
  const width = 700; // 700² elements are two chunks
  const w = parameter("w", [width, width], { kind: "constant", value: 0 });
  const loss = gemm(input("x", "float32", [1, width]), w).sum();
  const optimizer = { ...adamw({ eps: 1e-3, weightDecay: 0 }) };
  await using trainer = await ParallelTrainer.create({ passes: one({ loss }), optimizer, replicas: 2 });
  await trainer.load({ w: floats([width, width], new Float32Array(width ** 2).fill(1)) });
  // d loss / dw[i,j] = x[i], so the first step of Adam takes lr·x/(|x| + eps) off row i.
  const x = (r: number) =>
    floats(
      [1, width],
      Float32Array.from({ length: width }, (_, i) => Math.cos(i) + r),
    );
  const scalars = { ...optimizer.scalars(1, LEARNING_RATE), emaDecay: 0.5 };
  const { metrics } = await trainer.step([[{ x: x(0) }], [{ x: x(1) }]], scalars);
  const mean = Array.from({ length: width }, (_, i) => Math.cos(i) + 0.5);
  expect(metrics.grad_norm / Math.sqrt(width * mean.reduce((s, g) => s + g * g, 0))).toBeCloseTo(1, 5);
  expect(metrics.loss / (width * mean.reduce((s, g) => s + g, 0))).toBeCloseTo(1, 4);
  const saved = await trainer.save();
  const expected = floats([width, width]);
  for (const [i, g] of mean.entries())
    expected.data.fill(1 - (LEARNING_RATE * g) / (Math.abs(g) + 1e-3), i * width, (i + 1) * width);
  expect(distance(saved.w, expected)).toBeLessThan(1e-6);
  // The next step sees the new parameters on both replicas.
  const again = await trainer.step([[{ x: x(0) }], [{ x: x(1) }]], scalars);
  const sums = mean.map((_, i) => (2 * Math.cos(i) + 1) * 0.5 * Number(expected.data[i * width]));
  expect(again.metrics.loss / (width * sums.reduce((a, b) => a + b))).toBeCloseTo(1, 4);
});

test("saving and loading in between changes not one bit", async () => {
  const { loss } = tinyLoss(4);
  const optimizer = adamw();
  const batches = (t: number) => [[tinyBatch(t * 8, 4)], [tinyBatch(t * 8 + 4, 4)]];
  const scalars = (t: number) => ({ ...optimizer.scalars(t + 1, LEARNING_RATE), emaDecay: EMA_DECAY });
  await using first = await ParallelTrainer.create({ passes: one({ loss }), optimizer, replicas: 2 });
  await first.load(start(loss));
  for (let t = 0; t < 3; t++) await first.step(batches(t), scalars(t), 1);
  const middle = await first.save();
  for (let t = 3; t < 6; t++) await first.step(batches(t), scalars(t), 1);
  const end = await first.save();
  expect(distance(end["conv.weight"], middle["conv.weight"])).toBeGreaterThan(1e-3);
  await using second = await ParallelTrainer.create({ passes: one({ loss }), optimizer, replicas: 2 });
  await second.load(middle);
  for (let t = 3; t < 6; t++) await second.step(batches(t), scalars(t), 1);
  expect(await second.save()).toEqual(end);
  // The first, set back, goes the same way again.
  await first.load(middle);
  for (let t = 3; t < 6; t++) await first.step(batches(t), scalars(t), 1);
  expect(await first.save()).toEqual(end);
});

test("frozen parameters take part and stay out of the checkpoint", async () => {
  const { loss } = tinyLoss(4);
  const all = start(loss);
  const optimizer = adamw();
  const scalars = { ...optimizer.scalars(1, LEARNING_RATE), emaDecay: EMA_DECAY };
  const { "conv.weight": frozen, ...rest } = all;
  await using trainer = await ParallelTrainer.create({
    passes: one({ loss }),
    optimizer,
    replicas: 1,
    frozen: new Map([["conv.weight", frozen]]),
  });
  expect(trainer.keys.map((k) => k.name)).not.toContain("conv.weight");
  await trainer.load(rest);
  const { metrics } = await trainer.step([[tinyBatch(0, 4)]], scalars);
  await using full = await ParallelTrainer.create({ passes: one({ loss }), optimizer, replicas: 1 });
  await full.load(all);
  expect(metrics.loss).toBeCloseTo((await full.step([[tinyBatch(0, 4)]], scalars)).metrics.loss, 6);
  const saved = await trainer.save();
  expect(Object.keys(saved).filter((k) => k.endsWith("conv.weight"))).toEqual([]);
  expect(distance(saved["out.weight"], all["out.weight"])).toBeGreaterThan(1e-3);
});

test("what does not fit is named", async () => {
  const { loss } = tinyLoss(4);
  await using trainer = await ParallelTrainer.create({
    passes: one({ loss }),
    optimizer: adamw(),
    replicas: 1,
  });
  const { "out.bias": _, ...incomplete } = start(loss);
  await expect(trainer.load(incomplete)).rejects.toThrow("parameter out.bias needs shape [3], got nothing");
  const wrong = { ...start(loss), "out.bias": floats([4]) };
  await expect(trainer.load(wrong)).rejects.toThrow("parameter out.bias needs shape [3], got [4]");
});

test("one replica's failure ends the step, though the others wait for it", async () => {
  const { loss } = tinyLoss(4);
  const optimizer = adamw();
  await using trainer = await ParallelTrainer.create({ passes: one({ loss }), optimizer, replicas: 2 });
  await trainer.load(start(loss));
  const { x, y } = tinyBatch(0, 4);
  const broken = { x, y: floats([4, 2]) };
  const scalars = { ...optimizer.scalars(1, LEARNING_RATE), emaDecay: EMA_DECAY };
  await expect(trainer.step([[{ x, y }], [broken]], scalars)).rejects.toThrow(/^replica 1: .*y/s);
});

test("replicas that cannot start are not left behind", async () => {
  const { loss } = tinyLoss(4);
  const location = "no-such-file.safetensors";
  const frozen = new Map([
    ["conv.bias", { location, offset: 0, bytes: 16, dtype: "float32", shape: [4] } as const],
  ]);
  const workers = () =>
    process.getActiveResourcesInfo().filter((r) => r === "MessagePort" || r === "Worker").length;
  const before = workers();
  await expect(
    ParallelTrainer.create({ passes: one({ loss }), optimizer: adamw(), replicas: 2, frozen }),
  ).rejects.toThrow(location);
  expect(workers()).toBe(before);
});

describe("a step of several passes", () => {
  /** y = w·x learns to be t(x), and c·y to tell y from t(x): as a student, its teacher and a discriminator do. */
  const x = input("x", "float32", [1]);
  const [w, c] = ["w", "c"].map((name) => parameter(name, [1], { kind: "constant", value: 0 }));
  const target = x.mul(parameter("t", [1], { kind: "constant", value: 0 }));
  const [y, known] = [w.mul(x), input("target", "float32", [1])];
  const passes: Pass[] = [
    { name: "teacher", outputs: { target } },
    {
      name: "",
      loss: y.sub(known).pow(2).sum().add(c.mul(y).sum()),
      trains: (key) => key === "w",
      outputs: { y },
    },
    {
      name: "critic",
      loss: c.mul(known.sub(input("y", "float32", [1]))).sum(),
      metrics: { scale: c.sum() },
      trains: (key) => key === "c",
    },
  ];
  const frozen = new Map([["t", floats([1], [3])]]);
  const optimizer = adamw({ betas: [0, 0.5], eps: 1e-12, weightDecay: 0 });
  const scalars = { ...optimizer.scalars(1, 0.1), emaDecay: 0 };
  const batch = (value: number) => ({ x: floats([1], [value]) });

  test("each trains its own parameters, and what one gives the next can use", async () => {
    await using trainer = await ParallelTrainer.create({ passes, optimizer, frozen, replicas: 2 });
    expect(trainer.keys.map((k) => k.name)).toEqual(["w", "c"]);
    await trainer.load({ w: floats([1], [1]), c: floats([1], [0.5]) });
    const { metrics } = await trainer.step(
      [
        [batch(1), batch(3)],
        [batch(2), batch(2)],
      ],
      scalars,
    );
    const means = { x: 2, xx: 18 / 4 };
    expect(metrics.loss).toBeCloseTo(4 * means.xx + 0.5 * means.x, 5); // (w − t)²x² + c·w·x
    expect(metrics.grad_norm).toBeCloseTo(Math.abs(-4 * means.xx + 0.5 * means.x), 5);
    // the critic sees y of before the student's step
    expect(metrics.critic_loss).toBeCloseTo(0.5 * (3 - 1) * means.x, 5);
    expect(metrics.critic_grad_norm).toBeCloseTo(2 * means.x, 5);
    expect(metrics.critic_scale).toBeCloseTo(0.5, 6);
    const saved = await trainer.save();
    expect(Number(saved.w.data[0])).toBeCloseTo(1.1, 5); // Adam's first step is the learning rate
    expect(Number(saved.c.data[0])).toBeCloseTo(0.4, 5);
  });

  test("one may learn faster than the others", async () => {
    const rated = passes.map((pass) => (pass.name === "critic" ? { ...pass, rate: 3 } : pass));
    await using trainer = await ParallelTrainer.create({ passes: rated, optimizer, frozen, replicas: 1 });
    await trainer.load({ w: floats([1], [1]), c: floats([1], [0.5]) });
    await trainer.step([[batch(1)]], scalars);
    const saved = await trainer.save();
    expect(Number(saved.w.data[0])).toBeCloseTo(1.1, 5);
    expect(Number(saved.c.data[0])).toBeCloseTo(0.5 - 3 * 0.1, 5);
  });

  test("two that train the same are refused", async () => {
    const both = passes.map((pass) => ({ ...pass, trains: undefined }));
    await expect(ParallelTrainer.create({ passes: both, optimizer, frozen, replicas: 1 })).rejects.toThrow(
      "two passes of a step train",
    );
  });
});
