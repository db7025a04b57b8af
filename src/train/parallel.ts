/**
 * @file Data-parallel training on the cores of one machine: each replica computes gradients on its own batch;
 * gradients are averaged and every replica updates its share of the parameters (Rajbhandari et al. 2020, ZeRO
 * stage 1).
 */

import { once } from "node:events";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { grad, graph, input, inputsOf, nameOf, parametersOf, symbol, type Value } from "../graph/index.ts";
import { type ExternalTensor, emitOnnx } from "../onnx/index.ts";
import { floats, type HostTensor, sizeOf } from "../tensor/index.ts";
import { type Optimizer, type StepScalars, scalarInputs } from "./optimizer.ts";

export interface Chunk {
  start: number;
  length: number;
  /** Whether weight decay applies: matrices and kernels yes; biases and norms no. */
  decays: boolean;
}

interface Slot {
  name: string;
  shape: number[];
  start: number;
  length: number;
}

export interface ReplicaSetup {
  rank: number;
  replicas: number;
  size: number;
  layout: Slot[];
  chunks: Chunk[];
  metrics: string[];
  stateNames: string[];
  /** Models of the losses by the signature of their inputs. */
  backward: Record<string, Uint8Array>;
  update: Uint8Array;
  parameters: SharedArrayBuffer;
  gradients: SharedArrayBuffer[];
  state: SharedArrayBuffer[];
  squares: SharedArrayBuffer;
  barrier: SharedArrayBuffer;
}

export interface StepRequest {
  /** Micro-batches of this replica; their gradients are averaged. */
  batches: Record<string, HostTensor>[];
  scalars: Omit<StepScalars, "clip">;
  clipNorm?: number;
}

export interface StepReply {
  metrics: Record<string, number>;
  norm: number;
}

/** A loss of one micro-batch, a scalar, with further scalars to report. */
export interface Loss {
  loss: Value;
  metrics?: Record<string, Value>;
}

export interface ParallelOptions {
  /** Loss of one micro-batch, a scalar. */
  loss: Value;
  /** Further scalars to report. */
  metrics?: Record<string, Value>;
  /** The same loss for inputs of other shapes; a micro-batch runs where its shapes fit. */
  variants?: readonly Loss[];
  optimizer: Optimizer;
  /** Default: one per core. */
  replicas?: number;
  /** Parameters that are not trained. */
  frozen?: ReadonlyMap<string, HostTensor | ExternalTensor>;
}

/** Small enough for the second-level cache, large enough to hide the cost of a call. */
const CHUNK = 1 << 18;

/** After this long a replica that does not end by itself, as in the middle of a step, is terminated. */
const CLOSE_MS = 10_000;

/** Trains the parameters of a loss on several cores. Free it with `dispose`. */
export class ParallelTrainer implements AsyncDisposable {
  readonly replicas: number;
  private readonly workers: Worker[];
  private readonly setup: ReplicaSetup;
  private readonly parameters: Float32Array;
  private readonly state: Float32Array[];

  private constructor(workers: Worker[], setup: ReplicaSetup) {
    this.workers = workers;
    this.setup = setup;
    this.replicas = setup.replicas;
    this.parameters = new Float32Array(setup.parameters);
    this.state = setup.state.map((b) => new Float32Array(b));
  }

  static async create({
    loss,
    metrics = {},
    variants = [],
    optimizer,
    replicas,
    frozen,
  }: ParallelOptions): Promise<ParallelTrainer> {
    const trained = parametersOf([loss]).filter((p) => !frozen?.has(p.name));
    const keys = trained.map((p) => p.name).sort();
    const backward: Record<string, Uint8Array> = {};
    for (const one of [{ loss, metrics }, ...variants]) {
      const parameters = parametersOf([one.loss]).filter((p) => !frozen?.has(p.name));
      if (
        parameters
          .map((p) => p.name)
          .sort()
          .join() !== keys.join()
      )
        throw new Error("all variants of a loss must have the same parameters");
      const gradients = grad(
        one.loss,
        parameters.map((p) => p.value),
      );
      const g = graph({
        loss: one.loss,
        ...one.metrics,
        ...Object.fromEntries(parameters.map((p, i) => [`grad.${p.name}`, gradients[i]])),
      });
      const shapes = inputsOf(g).map((v) => [nameOf(v), v.shape as number[]] as const);
      backward[signature(shapes)] = emitOnnx(g, { weights: frozen });
    }
    const { layout, chunks, size } = plan(trained);
    const count = replicas ?? availableParallelism();
    const stateNames = [...optimizer.state, "ema"];
    const memory = () => new SharedArrayBuffer(size * 4);
    const setup: ReplicaSetup = {
      rank: 0,
      replicas: count,
      size,
      layout,
      chunks,
      metrics: ["loss", ...Object.keys(metrics)],
      stateNames,
      backward,
      update: emitOnnx(updateGraph(optimizer)),
      parameters: memory(),
      gradients: Array.from({ length: count }, memory),
      state: stateNames.map(memory),
      squares: new SharedArrayBuffer(count * 8),
      barrier: new SharedArrayBuffer(8),
    };
    const workers = Array.from({ length: count }, (_, rank) => startWorker({ ...setup, rank }));
    const trainer = new ParallelTrainer(workers, setup);
    try {
      await trainer.all(() => undefined);
    } catch (error) {
      await trainer.dispose();
      throw error;
    }
    return trainer;
  }

  /** Keys and shapes of the trained parameters. */
  get keys(): { name: string; shape: number[] }[] {
    return this.setup.layout.map(({ name, shape }) => ({ name, shape }));
  }

  /** Sends one message to every replica (none when undefined) and waits for all answers. */
  private async all<T>(message: (rank: number) => unknown): Promise<T[]> {
    return Promise.all(
      this.workers.map(
        (worker, rank) =>
          new Promise<T>((resolve, reject) => {
            const settle = (f: () => void) => {
              worker.off("error", onError);
              worker.off("message", onMessage);
              f();
            };
            const onError = (error: Error) => settle(() => reject(error));
            const onMessage = (reply: T & { error?: string }) =>
              settle(() =>
                reply.error ? reject(new Error(`replica ${rank}: ${reply.error}`)) : resolve(reply),
              );
            worker.on("error", onError);
            worker.on("message", onMessage);
            const m = message(rank);
            if (m !== undefined) worker.postMessage(m);
          }),
      ),
    );
  }

  /**
   * One optimiser step. `batches[rank]` are the micro-batches of a replica.
   * @returns means over the replicas, and the norm of the averaged gradient before clipping.
   */
  async step(
    batches: readonly Record<string, HostTensor>[][],
    scalars: Omit<StepScalars, "clip">,
    clipNorm?: number,
  ): Promise<StepReply> {
    const replies = await this.all<StepReply>((rank) => ({ batches: batches[rank], scalars, clipNorm }));
    const metrics: Record<string, number> = {};
    for (const { metrics: m } of replies)
      for (const [k, v] of Object.entries(m)) metrics[k] = (metrics[k] ?? 0) + v / replies.length;
    return { metrics, norm: replies[0].norm };
  }

  /**
   * Parameters and optimiser state: `<key>`, `<state>.<key>` and `ema.<key>`. A state that is missing is zero;
   * a missing average starts at the parameter.
   */
  async load(tensors: Readonly<Record<string, HostTensor>>): Promise<void> {
    for (const { name, shape, start, length } of this.setup.layout) {
      const value = tensors[name];
      if (!value || value.shape.join() !== shape.join())
        throw new Error(
          `parameter ${name} needs shape [${shape}], got ${value ? `[${value.shape}]` : "nothing"}`,
        );
      this.parameters.set(value.data as Float32Array, start);
      this.setup.stateNames.forEach((s, i) => {
        const known = tensors[`${s}.${name}`] ?? (s === "ema" ? value : undefined);
        if (known) this.state[i].set(known.data as Float32Array, start);
        else this.state[i].fill(0, start, start + length);
      });
    }
    await this.all(() => "import");
  }

  /** Copies of what `load` takes. */
  async save(): Promise<Record<string, HostTensor>> {
    await this.all(() => "export");
    const out: Record<string, HostTensor> = {};
    for (const { name, shape, start, length } of this.setup.layout) {
      out[name] = floats(shape, this.parameters.slice(start, start + length));
      this.setup.stateNames.forEach((s, i) => {
        out[`${s}.${name}`] = floats(shape, this.state[i].slice(start, start + length));
      });
    }
    return out;
  }

  async dispose(): Promise<void> {
    await Promise.all(this.workers.map(ended));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

/** To tear a thread down while it holds sessions may crash the process: it releases them and ends by itself. */
async function ended(worker: Worker): Promise<void> {
  if (worker.threadId === -1) return; // has ended
  const exit = once(worker, "exit").catch(() => {});
  worker.postMessage("close");
  // One that waits for a replica that failed does not answer.
  const late = setTimeout(() => worker.terminate(), CLOSE_MS);
  await exit;
  clearTimeout(late);
}

/** What tells the inputs of one variant from those of another. */
export function signature(inputs: readonly (readonly [name: string, shape: readonly number[]])[]): string {
  return inputs
    .map(([name, shape]) => `${name}[${shape}]`)
    .sort()
    .join(" ");
}

/** Lays the parameters out in one flat array, those that decay first, and cuts it into chunks. */
function plan(trained: readonly { name: string; shape: number[] }[]): {
  layout: Slot[];
  chunks: Chunk[];
  size: number;
} {
  const layout: Slot[] = [];
  const chunks: Chunk[] = [];
  let size = 0;
  for (const decays of [true, false]) {
    const from = size;
    for (const { name, shape } of trained)
      if (shape.length >= 2 === decays) {
        layout.push({ name, shape, start: size, length: sizeOf(shape) });
        size += sizeOf(shape);
      }
    for (let start = from; start < size; start += CHUNK)
      chunks.push({ start, length: Math.min(CHUNK, size - start), decays });
  }
  return { layout, chunks, size };
}

/** The optimiser on one flat chunk of any length. */
function updateGraph(optimizer: Optimizer) {
  const shape = [symbol("N")];
  const p = input("p", "float32", shape);
  const state = optimizer.state.map((s) => input(s, "float32", shape));
  const average = input("ema", "float32", shape);
  const scalars = scalarInputs();
  const [next, nextState] = optimizer.update(p, input("g", "float32", shape), state, scalars);
  return graph({
    "next.p": next,
    ...Object.fromEntries(optimizer.state.map((s, i) => [`next.${s}`, nextState[i]])),
    "next.ema": average.mul(scalars.emaDecay).add(next.sub(next.mul(scalars.emaDecay))),
  });
}

/** Starts a replica; from TypeScript sources (development, tests) the loader is registered first. */
function startWorker(setup: ReplicaSetup): Worker {
  const url = new URL(import.meta.url.endsWith(".ts") ? "./worker.ts" : "./worker.js", import.meta.url);
  if (!import.meta.url.endsWith(".ts")) return new Worker(url, { workerData: setup });
  const boot = `import("tsx/esm/api").then((t) => { t.register(); return import(${JSON.stringify(url.href)}); })`;
  return new Worker(boot, { eval: true, workerData: setup });
}
