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
const mine = chunks.filter(({ owner }) => owner === rank);
const others = chunks.filter(({ owner }) => owner !== rank);

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

function view(array: Float32Array, { start, length, matrix }: Chunk): Tensor {
  return toOrt(array.subarray(start, start + length), matrix ?? [length]);
}

const options: InferenceSession.SessionOptions = {
  intraOpNumThreads: 1,
  interOpNumThreads: 1,
  logSeverityLevel: 3,
};
const create = (model: Uint8Array) => platform().InferenceSession.create(model, options);
const updates = new Map<string, InferenceSession>();
for (const shape of new Set(mine.map(({ matrix }) => `${matrix ?? ""}`)))
  updates.set(shape, await create(setup.updates[shape]));
const sessions = new Map<string, Promise<InferenceSession>>();
// Passes of one shape are built at once; where there are many, each when it is first needed.
const shapes = Object.keys(setup.models);
if (shapes.length === 1) for (const i of setup.passes.keys()) await sessionOf(shapes[0], i);

/** Pass i for micro-batches of a shape. */
function sessionOf(shape: string, i: number): Promise<InferenceSession> {
  const models = setup.models[shape];
  if (!models) throw new Error(`no loss takes the inputs ${shape}; there are ${shapes.join("; ")}`);
  const key = `${i} ${shape}`;
  const session = sessions.get(key) ?? create(models[i]);
  sessions.set(key, session);
  return session;
}

const parameterFeeds: Record<string, Tensor> = {};
const gradientFetches: Record<string, Tensor> = {};
for (const { name, shape, start, length } of setup.layout) {
  parameterFeeds[name] = toOrt(parameters.subarray(start, start + length), shape);
  gradientFetches[`grad.${name}`] = toOrt(gradient.subarray(start, start + length), shape);
}

/** A micro-batch on its way through the passes. */
interface MicroBatch {
  shape: string;
  feeds: Record<string, Tensor>;
}

function microBatch(feeds: Record<string, HostTensor>): MicroBatch {
  return {
    shape: signature(Object.entries(feeds).map(([name, t]) => [name, t.shape])),
    feeds: Object.fromEntries(Object.entries(feeds).map(([k, t]) => [k, toOrt(t.data, t.shape, t.dtype)])),
  };
}

/** Runs pass i: adds what it gives to the micro-batches, leaves the sum of their gradients; returns mean metrics. */
async function runPass(i: number, batches: readonly MicroBatch[]): Promise<Record<string, number>> {
  const { metrics: names, outputs, start, end } = setup.passes[i];
  const metrics: Record<string, number> = Object.fromEntries(Object.values(names).map((m) => [m, 0]));
  const sum = batches.length > 1 && end > start ? new Float32Array(end - start) : undefined;
  for (const batch of batches) {
    const session = await sessionOf(batch.shape, i);
    const feeds = session.inputNames.map((name) => [name, batch.feeds[name] ?? parameterFeeds[name]]);
    const fetches = session.outputNames.map((name) => [name, gradientFetches[name] ?? null]);
    const out = await session.run(Object.fromEntries(feeds), Object.fromEntries(fetches));
    for (const [name, logged] of Object.entries(names))
      metrics[logged] += Number(out[name].data[0]) / batches.length;
    for (const name of outputs) batch.feeds[name] = out[name] as Tensor;
    if (sum) for (let k = start; k < end; k++) sum[k - start] += gradient[k];
  }
  if (sum) gradient.set(sum, start);
  return metrics;
}

/** Mean gradient of some chunks of this replica, in `gradient`; returns its squared norm. */
function reduce(own: readonly Chunk[], count: number): number {
  let sum = 0;
  const scale = 1 / (replicas * count);
  for (const { start, length } of own) {
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
  const metrics: Record<string, number> = {};
  const running = batches.map(microBatch);
  for (const [i, { start, end, norm }] of setup.passes.entries()) {
    Object.assign(metrics, await runPass(i, running));
    if (end > start) metrics[norm] = await exchange(i, { count: batches.length, scalars, clipNorm });
  }
  return { metrics };
}

interface Exchange extends Pick<StepRequest, "scalars" | "clipNorm"> {
  /** Micro-batches of each replica. */
  count: number;
}

/** Averages the gradients of pass i and updates its parameters everywhere; returns the gradient's norm. */
async function exchange(i: number, { count, scalars, clipNorm }: Exchange): Promise<number> {
  const own = mine.filter((chunk) => chunk.pass === i);
  const foreign = others.filter((chunk) => chunk.pass === i);
  // The other replicas need what they own; the own share stays here.
  for (const { start, length } of foreign)
    gradients[rank].set(gradient.subarray(start, start + length), start);
  barrier();
  squares[rank] = reduce(own, count);
  barrier();
  const norm = Math.sqrt(squares.reduce((a, b) => a + b, 0));
  const clip = clipNorm === undefined ? 1 : Math.min(1, clipNorm / (norm + 1e-6));
  const { rate } = setup.passes[i];
  const { learningRate = 0, stepSize, decay } = scalars;
  const rated = { ...scalars, learningRate: rate * learningRate, stepSize: rate * stepSize, clip };
  for (const chunk of own) {
    const values = { ...rated, decay: chunk.decays ? 1 - rate * (1 - decay) : 1 };
    const arrays = { p: parameters, ...Object.fromEntries(setup.stateNames.map((s, j) => [s, state[j]])) };
    const tensors: Record<string, Tensor> = { g: view(gradient, chunk) };
    for (const [name, value] of Object.entries(values)) tensors[name] = toOrt(Float32Array.of(value), []);
    for (const [name, array] of Object.entries(arrays)) tensors[name] = view(array, chunk);
    // Each tensor is read for the last time by the elementwise step that writes it, so updates run in place.
    const session = updates.get(`${chunk.matrix ?? ""}`)!;
    await session.run(
      Object.fromEntries(session.inputNames.map((name) => [name, tensors[name]])),
      Object.fromEntries(session.outputNames.map((name) => [name, tensors[name.slice("next.".length)]])),
    );
    const { start, length } = chunk;
    shared.set(parameters.subarray(start, start + length), start);
  }
  barrier();
  pull(foreign);
  return norm;
}

function pull(which: readonly Chunk[]): void {
  for (const { start, length } of which) parameters.set(shared.subarray(start, start + length), start);
}

parentPort!.on("message", async (message: StepRequest | "import" | "export" | "close") => {
  try {
    if (message === "close") {
      for (const session of [...updates.values(), ...sessions.values()]) await (await session).release();
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
