/**
 * @file The bundled UNet's forward pass and whole training step (batch 32, clipping, AdamW and average included) in
 * GFLOP/s, beside a 2048³ MatMul of the same run. Rounds alternate, and the median of each counts, because other
 * work on the machine disturbs all of them alike.
 */

import { join } from "node:path";
import process from "node:process";
import { flopsOf, graph, input } from "../src/graph/index.ts";
import { bundledModel } from "../src/index.node.ts";
import { unet, unetConfig } from "../src/models/index.ts";
import { rootScope } from "../src/nn/index.ts";
import { readJson } from "../src/pipelines/index.ts";
import { compile } from "../src/runtime/index.ts";
import { floats, Generator, type HostTensor } from "../src/tensor/index.ts";
import { adamw } from "../src/train/index.ts";
import { initialValues } from "../src/train/optimizer.ts";
import { ParallelTrainer } from "../src/train/parallel.ts";
import { unetLoss } from "../src/train/unet.ts";

const BATCH = 32;
const SIDE = 16;
const TOKENS = 24;
const ROUNDS = Number(process.env.ROUNDS ?? 9);
/** Runs of a task in a round, one after the other as in use, after one that does not count. */
const BURST = 3;

const config = unetConfig(await readJson(join(bundledModel(), "unet", "config.json")));
const pooled = config.projection_class_embeddings_input_dim! - 6 * config.addition_time_embed_dim!;
const g = new Generator(0);

/** Random inputs of the loss for some pictures. */
function feeds(batch: number): Record<string, HostTensor> {
  return {
    sample: g.randn([batch, 4, SIDE, SIDE]),
    target: g.randn([batch, 4, SIDE, SIDE]),
    hidden: g.randn([batch, TOKENS, config.cross_attention_dim]),
    pooled: g.randn([batch, pooled]),
    timestep: floats([batch], new Float32Array(batch).fill(500)),
    weight: floats([batch], new Float32Array(batch).fill(1)),
    time_ids: floats([batch, 6], new Float32Array(6 * batch).fill(64)),
  };
}

// 2048³ MatMul
const [a, b] = [input("a", "float32", [2048, 2048]), input("b", "float32", [2048, 2048])];
const matmul = await compile(graph({ c: a.matmul(b) }));
const matrices = { a: g.randn([2048, 2048]), b: g.randn([2048, 2048]) };

// forward, one program on all cores
const prediction = unet(rootScope(), config, {
  sample: input("sample", "float32", [BATCH, 4, SIDE, SIDE]),
  timestep: input("timestep", "float32", [BATCH]),
  encoderHiddenStates: input("hidden", "float32", [BATCH, TOKENS, config.cross_attention_dim]),
  textEmbeds: input("pooled", "float32", [BATCH, pooled]),
  timeIds: input("time_ids", "float32", [BATCH, 6]),
});
const forwardGraph = graph({ prediction });
const forwardFlops = flopsOf(forwardGraph);

// training step: one single-threaded replica for each core
const replicas = 2;
const { loss } = unetLoss(config, {
  batch: BATCH / replicas,
  height: SIDE,
  width: SIDE,
  tokens: TOKENS,
  pooled,
});
const optimizer = adamw();
await using trainer = await ParallelTrainer.create({ passes: [{ name: "", loss }], optimizer, replicas });
const start: Record<string, HostTensor> = {};
for (const { name, shape } of trainer.keys)
  start[name] = initialValues(shape, { kind: "normal", std: 0.02 }, () => g.random());
await trainer.load(start);
await using forward = await compile(forwardGraph, { weights: new Map(Object.entries(start)) });

const { target, weight, ...forwardFeeds } = feeds(BATCH);
const batches = Array.from({ length: replicas }, () => [feeds(BATCH / replicas)]);
const scalars = { ...optimizer.scalars(1, 1e-4), emaDecay: 0.999 };
const tasks = {
  "MatMul 2048³": { flops: 2 * 2048 ** 3, run: () => matmul.run(matrices) as Promise<unknown> },
  "UNet forward": { flops: forwardFlops, run: () => forward.run(forwardFeeds) as Promise<unknown> },
  "training step": {
    flops: 3 * forwardFlops,
    run: () => trainer.step(batches, scalars, 1) as Promise<unknown>,
  },
};
const seconds: Record<string, number[]> = Object.fromEntries(Object.keys(tasks).map((name) => [name, []]));
for (let round = -1; round < ROUNDS; round++)
  for (const [name, { run }] of Object.entries(tasks)) {
    await run(); // caches and threads are those of the task before
    const started = performance.now();
    for (let i = 0; i < BURST; i++) await run();
    if (round >= 0) seconds[name].push((performance.now() - started) / 1000 / BURST);
  }

const median = (list: number[]) => [...list].sort((x, y) => x - y)[list.length >> 1];
const rates = Object.fromEntries(
  Object.entries(tasks).map(([name, { flops }]) => [name, flops / median(seconds[name]) / 1e9]),
);
const whole = rates["MatMul 2048³"];
console.log(
  `batch ${BATCH}, ${(forwardFlops / BATCH / 1e9).toFixed(3)} GFLOP a picture forward, median of ${ROUNDS}`,
);
for (const [name, rate] of Object.entries(rates)) {
  const per = name === "MatMul 2048³" ? "" : `  ${(BATCH / median(seconds[name])).toFixed(1)} pictures/s`;
  console.log(
    `${name.padEnd(14)} ${rate.toFixed(0).padStart(5)} GFLOP/s  ${(rate / whole).toFixed(2)} of MatMul${per}`,
  );
}
await matmul.dispose();
