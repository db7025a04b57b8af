/**
 * @file One replica of data-parallel training. ONNX Runtime splits small convolutions badly over threads, while
 * single-threaded sessions on separate batches scale almost linearly; so each core runs its own.
 */

import { parentPort, workerData } from "node:worker_threads";
import type { InferenceSession, Tensor } from "onnxruntime-common";
import "../platform/node.ts";
import { platform } from "../platform/index.ts";
import type { HostTensor } from "../tensor/index.ts";
import { type Chunk, type ReplicaSetup, type StepReply, type StepRequest, signature } from "./parallel.ts";

const setup = workerData as ReplicaSetup;
const { rank, replicas, size, chunks } = setup;
const shared = new Float32Array(setup.parameters);
const gradients = setup.gradients.map((b) => new Float32Array(b));
const exported = setup.state.map((b) => new Float32Array(b));
const squares = new Float64Array(setup.squares);
const barrierCells = new Int32Array(setup.barrier);
const mine = chunks.filter((_, i) => i % replicas === rank);
const others = chunks.filter((_, i) => i % replicas !== rank);

// ONNX Runtime does not take shared memory, so each replica computes on its own copies.
const parameters = new Float32Array(size);
const gradient = new Float32Array(size);
const state = setup.state.map(() => new Float32Array(size));

/** Waits until all replicas have arrived. */
function barrier(): void {
  const generation = Atomics.load(barrierCells, 1);
  if (Atomics.add(barrierCells, 0, 1) === replicas - 1) {
    Atomics.store(barrierCells, 0, 0);
    Atomics.add(barrierCells, 1, 1);
    Atomics.notify(barrierCells, 1);
  } else while (Atomics.load(barrierCells, 1) === generation) Atomics.wait(barrierCells, 1, generation);
}

function toOrt(data: Float32Array | HostTensor["data"], shape: readonly number[], dtype = "float32"): Tensor {
  return new (platform().Tensor)(dtype as "float32", data as Float32Array, shape as number[]);
}

function view(array: Float32Array, { start, length }: Chunk): Tensor {
  return toOrt(array.subarray(start, start + length), [length]);
}

const options: InferenceSession.SessionOptions = {
  intraOpNumThreads: 1,
  interOpNumThreads: 1,
  logSeverityLevel: 3,
};
const create = (model: Uint8Array) => platform().InferenceSession.create(model, options);
const update = await create(setup.update);
const backwards = new Map<string, InferenceSession>();
// A loss of one shape is built at once; where there are many, each when it is first needed.
const models = Object.entries(setup.backward);
if (models.length === 1) backwards.set(models[0][0], await create(models[0][1]));

async function backwardOf(feeds: Record<string, HostTensor>): Promise<InferenceSession> {
  const key = signature(Object.entries(feeds).map(([name, t]) => [name, t.shape]));
  let session = backwards.get(key);
  if (!session) {
    const model = setup.backward[key];
    if (!model)
      throw new Error(`no loss takes the inputs ${key}; there are ${Object.keys(setup.backward).join("; ")}`);
    session = await create(model);
    backwards.set(key, session);
  }
  return session;
}

const parameterFeeds: Record<string, Tensor> = {};
const gradientFetches: Record<string, Tensor | null> = Object.fromEntries(
  setup.metrics.map((m) => [m, null]),
);
for (const { name, shape, start, length } of setup.layout) {
  parameterFeeds[name] = toOrt(parameters.subarray(start, start + length), shape);
  gradientFetches[`grad.${name}`] = toOrt(gradient.subarray(start, start + length), shape);
}

async function backwardPass(microBatches: StepRequest["batches"]): Promise<Record<string, number>> {
  const metrics: Record<string, number> = Object.fromEntries(setup.metrics.map((m) => [m, 0]));
  const sum = microBatches.length > 1 ? new Float32Array(size) : gradient;
  for (const [i, feeds] of microBatches.entries()) {
    const inputs = Object.entries(feeds).map(([k, t]) => [k, toOrt(t.data, t.shape, t.dtype)]);
    const backward = await backwardOf(feeds);
    const out = await backward.run({ ...parameterFeeds, ...Object.fromEntries(inputs) }, gradientFetches);
    for (const m of setup.metrics) metrics[m] += Number(out[m].data[0]) / microBatches.length;
    if (i === 0 && sum !== gradient) sum.set(gradient);
    else if (i > 0) for (let k = 0; k < size; k++) sum[k] += gradient[k];
  }
  if (sum !== gradient) gradient.set(sum);
  // The other replicas need what they own; the own share stays here.
  for (const { start, length } of others)
    gradients[rank].set(gradient.subarray(start, start + length), start);
  return metrics;
}

/** Mean gradient of the chunks this replica owns, in `gradient`; returns its squared norm. */
function reduce(count: number): number {
  let sum = 0;
  const scale = 1 / (replicas * count);
  for (const { start, length } of mine) {
    const end = start + length;
    for (let r = 0; r < replicas; r++) {
      if (r === rank) continue;
      const other = gradients[r];
      for (let k = start; k < end; k++) gradient[k] += other[k];
    }
    for (let k = start; k < end; k++) {
      const g = gradient[k] * scale;
      gradient[k] = g;
      sum += g * g;
    }
  }
  return sum;
}

async function step({ batches, scalars, clipNorm }: StepRequest): Promise<StepReply> {
  const metrics = await backwardPass(batches);
  barrier();
  squares[rank] = reduce(batches.length);
  barrier();
  const norm = Math.sqrt(squares.reduce((a, b) => a + b, 0));
  const clip = clipNorm === undefined ? 1 : Math.min(1, clipNorm / (norm + 1e-6));
  for (const chunk of mine) {
    const values = { ...scalars, clip, decay: chunk.decays ? scalars.decay : 1 };
    const feeds = Object.fromEntries(
      Object.entries(values).map(([k, v]) => [k, toOrt(Float32Array.of(v), [])]),
    );
    const buffers = { p: parameters, ...Object.fromEntries(setup.stateNames.map((s, i) => [s, state[i]])) };
    const tensors = Object.entries(buffers).map(([k, a]) => [k, view(a, chunk)] as const);
    // Updates are elementwise and read each tensor before writing it, so they run in place.
    await update.run(
      { ...feeds, g: view(gradient, chunk), ...Object.fromEntries(tensors) },
      Object.fromEntries(tensors.map(([k, t]) => [`next.${k}`, t])),
    );
    const { start, length } = chunk;
    shared.set(parameters.subarray(start, start + length), start);
  }
  barrier();
  pull(others);
  return { metrics, norm };
}

function pull(which: readonly Chunk[]): void {
  for (const { start, length } of which) parameters.set(shared.subarray(start, start + length), start);
}

parentPort!.on("message", async (message: StepRequest | "import" | "export" | "close") => {
  try {
    if (message === "close") {
      for (const session of [update, ...backwards.values()]) await session.release();
      parentPort!.close();
    } else if (message === "import") {
      pull(chunks);
      exported.forEach((e, i) => {
        state[i].set(e);
      });
      parentPort!.postMessage({});
    } else if (message === "export") {
      exported.forEach((e, i) => {
        for (const { start, length } of mine) e.set(state[i].subarray(start, start + length), start);
      });
      parentPort!.postMessage({});
    } else parentPort!.postMessage(await step(message));
  } catch (error) {
    parentPort!.postMessage({ error: error instanceof Error ? error.message : String(error) });
  }
});
parentPort!.postMessage({});
