/** @file Ten steps of noise-prediction training against PyTorch: losses, gradient norms, weights, average. */

import { expect, test } from "vitest";
import "../../src/platform/node.ts";
import { unetConfig } from "../../src/models/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, type HostTensor } from "../../src/tensor/index.ts";
import { adamw, muon, type Optimizer, trainStep } from "../../src/train/index.ts";
import { scalarFeeds } from "../../src/train/optimizer.ts";
import { unetLoss } from "../../src/train/unet.ts";
import { difference, goldenJson, goldenTensors, prefixed, type Tensors } from "./golden.ts";

interface Run {
  optimizer: Optimizer;
  /** How much it may enlarge float32 rounding of gradients: Muon's iterations grow small singular values 485 times. */
  rounding: number;
  /** Largest difference of weights, as a share of the way they went. */
  apart: number;
}

const runs: Record<string, Run> = {
  default: { optimizer: adamw({ weightDecay: 0.01 }), rounding: 1, apart: 1e-3 },
  lightning: {
    optimizer: adamw({ betas: [0, 0.99], eps: 1e-4, weightDecay: 0.1 }),
    rounding: 1,
    apart: 1e-3,
  },
  // Singular values of a gradient below √ε are rounding in float32, and their directions walk at random by a tenth.
  muon: { optimizer: muon({ weightDecay: 0.1 }), rounding: 485, apart: 0.1 },
};

/** The part of a golden's group whose names start with `prefix`. */
function part(tensors: Tensors, prefix: string): Tensors {
  return Object.fromEntries(
    Object.entries(tensors)
      .filter(([k]) => k.startsWith(`${prefix}.`))
      .map(([k, t]) => [k.slice(prefix.length + 1), t]),
  );
}

function numbers(tensors: Tensors, name: string): number[] {
  return Array.from(tensors[name].data, Number);
}

test.each(Object.entries(runs))("ten steps, %s", async (name, { optimizer, rounding, apart }) => {
  const { start, batch, [name]: run } = await goldenTensors("training", "start", "batch", name);
  const batches = [0, 1, 2].map((i) => part(batch, `${i}`));
  const [rates, emaDecays] = [numbers(run, "learning_rate"), numbers(run, "ema_decay")];
  const config = unetConfig(await goldenJson("training"));
  const { loss, metrics } = unetLoss(config, { batch: 2, height: 8, width: 8, tokens: 5, pooled: 12 });
  const { graph, state } = trainStep(loss, { optimizer, clipNorm: 1, ema: true }, metrics);
  await using program = await compile(graph, { state, threads: 1 });
  for (const [key, value] of Object.entries({ ...start, ...prefixed("ema", start) })) program.set(key, value);

  const losses: number[] = [];
  const norms: number[] = [];
  for (const [i, rate] of rates.entries()) {
    const scalars = { ...optimizer.scalars(i + 1, rate), clip: 1, emaDecay: emaDecays[i] };
    const feeds = { ...batches[i % 3], weight: floats([2], [1, 1]), ...scalarFeeds(scalars) };
    const result = await program.run(feeds);
    losses.push(Number(result.loss.data[0]));
    norms.push(Number(result.grad_norm.data[0]));
  }

  const errors = (actual: number[], expected: number[]) =>
    Math.max(...expected.map((v, i) => Math.abs(actual[i] - v) / v));
  const weights = Object.entries(part(run, "weight"));
  const averages = Object.entries(part(run, "ema"));
  const rateSum = rates.reduce((a, b) => a + b); // about how far weights travel
  const farthest = async (prefix: string, expected: readonly (readonly [string, HostTensor])[]) => {
    const actual = await Promise.all(expected.map(([k]) => program.get(prefix + k)));
    return Math.max(...expected.map(([, t], i) => difference(actual[i], t))) / rateSum;
  };
  const result = {
    losses: errors(losses, numbers(run, "loss")),
    norms: errors(norms, numbers(run, "grad_norm")),
    weights: await farthest("", weights),
    averages: await farthest("ema.", averages),
  };
  expect(result.losses).toBeLessThan(1e-5 * rounding);
  expect(result.norms).toBeLessThan(1e-4 * rounding);
  expect(result.weights).toBeLessThan(apart);
  expect(result.averages).toBeLessThan(apart);
});
