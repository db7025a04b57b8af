/** @file A network small enough to train in a test, with every kind of parameter, and a job on it. */

import { input, type Value } from "../../src/graph/index.ts";
import { conv2d, groupNorm, linear, rootScope } from "../../src/nn/index.ts";
import { silu } from "../../src/ops/index.ts";
import { Generator, type HostTensor } from "../../src/tensor/index.ts";
import { adamw, type FitOptions, type Job } from "../../src/train/index.ts";

const SIDE = 6;

/** Squared error of a convolution, a norm and a linear layer; inputs `x` [B,2,6,6] and `y` [B,3]. */
export function tinyLoss(batch: number): { loss: Value; metrics: Record<string, Value> } {
  const root = rootScope();
  const x = input("x", "float32", [batch, 2, SIDE, SIDE]);
  const h = silu(groupNorm(root.at("norm"), conv2d(root.at("conv"), x, { out: 4 }), { groups: 2 }));
  const y = linear(root.at("out"), h.mean([2, 3]), { out: 3 });
  const difference = y.sub(input("y", "float32", [batch, 3]));
  return { loss: difference.pow(2).mean(), metrics: { l1: difference.abs().mean() } };
}

/** Samples `from` to `from + batch` of an endless data set. */
export function tinyBatch(from: number, batch: number): Record<string, HostTensor> {
  const x = new Float32Array(batch * 2 * SIDE * SIDE);
  const y = new Float32Array(batch * 3);
  for (let b = 0; b < batch; b++) {
    const g = new Generator(1000 + from + b);
    const sample = g.randn([2, SIDE, SIDE]).data;
    x.set(sample, b * sample.length);
    for (let i = 0; i < 3; i++) y[b * 3 + i] = Math.sin(sample[i]) + i;
  }
  return {
    x: { dtype: "float32", shape: [batch, 2, SIDE, SIDE], data: x },
    y: { dtype: "float32", shape: [batch, 3], data: y },
  };
}

/** A job on it, and the options that go with it; `batch` samples a micro-batch. */
export function tinyFit(
  out: string,
  { batch = 2, replicas = 1, steps = 12 }: { batch?: number; replicas?: number; steps?: number } = {},
): [Job, FitOptions] {
  const job: Job = {
    passes: [{ name: "", ...tinyLoss(batch) }],
    batch,
    feeds: async ({ step, micro, micros }) => tinyBatch((step * micros + micro) * batch, batch),
  };
  const options: FitOptions = {
    out,
    steps,
    replicas,
    optimizer: adamw(),
    learningRate: { peak: 0.01, warmup: 3, decay: "cosine" },
    clipNorm: 0.5,
    emaDecay: 0.9,
    seed: 3,
    checkpointMinutes: -1, // every step, however short
    logEvery: 1,
    sampleEvery: 0,
    fingerprint: "tiny",
  };
  return [job, options];
}
