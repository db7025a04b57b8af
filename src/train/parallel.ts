/**
 * @file Data-parallel training on the cores of one machine: each replica computes gradients on its own batch;
 * gradients are averaged and every replica updates its share of the parameters (Rajbhandari et al. 2020, ZeRO
 * stage 1).
 */

import { availableParallelism } from "node:os";
import type { Worker } from "node:worker_threads";
import {
  type Graph,
  grad,
  graph,
  input,
  inputsOf,
  nameOf,
  type ParameterInfo,
  parametersOf,
  symbol,
  type Value,
} from "../graph/index.ts";
import { type ExternalTensor, emitOnnx } from "../onnx/index.ts";
import { endThread, startThread } from "../platform/index.ts";
import { floats, type HostTensor, sizeOf } from "../tensor/index.ts";
import { matrixOf, type Optimizer, type StepScalars, scalarInputs } from "./optimizer.ts";

export interface Chunk {
  start: number;
  length: number;
  /** Index of the pass that trains it. */
  pass: number;
  /** Whether weight decay applies: matrices and kernels yes; biases and norms no. */
  decays: boolean;
  /** Of a matrix that the optimiser updates as a whole; other chunks are [length]. */
  matrix?: [rows: number, columns: number];
  /** The replica that updates it. */
  owner: number;
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
  passes: PassPlan[];
  stateNames: string[];
  /** Models of the passes by the signature of a micro-batch. */
  models: Record<string, Uint8Array[]>;
  /** Models of the optimiser by the shape of what they update; "" for chunks of any length. */
  updates: Record<string, Uint8Array>;
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
}

/** A loss of one micro-batch, a scalar, with further scalars to report. */
export interface Loss {
  loss: Value;
  metrics?: Record<string, Value>;
}

/**
 * One pass over a micro-batch: forward, and where there is a loss also backward and an update of the parameters that
 * the pass trains. Parameters of other passes are read as they are then, and stay.
 */
export interface Pass extends Partial<Loss> {
  /** Before `loss` and `grad_norm` in logs, unless it is "". */
  name: string;
  /** Whether it trains the parameter of this key. Default: all that are not frozen. */
  trains?(key: string): boolean;
  /** Its learning rate as a multiple of the step's; default 1. */
  rate?: number;
  /** Values that later passes of the step take as inputs of these names. */
  outputs?: Readonly<Record<string, Value>>;
}

/** A pass as the replicas need to know it. */
interface PassPlan {
  /** Reported scalars: name in the graph → name in logs. */
  metrics: Record<string, string>;
  outputs: string[];
  /** Places of the parameters that it trains, one after the other in the flat arrays. */
  start: number;
  end: number;
  rate: number;
  /** Name of the gradient norm in logs. */
  norm: string;
}

export interface ParallelOptions {
  /** What a step does with a micro-batch, in this order. */
  passes: readonly Pass[];
  /** The same passes for inputs of other shapes; a micro-batch runs where its shapes fit. */
  variants?: readonly (readonly Pass[])[];
  optimizer: Optimizer;
  /** Default: one per core. */
  replicas?: number;
  /** Parameters that are not trained. */
  frozen?: ReadonlyMap<string, HostTensor | ExternalTensor>;
}

/** So small that all arrays of an update are in the second-level cache together, so large that a call costs little. */
const CHUNK = 1 << 15;

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
    passes,
    variants = [],
    optimizer,
    replicas,
    frozen,
  }: ParallelOptions): Promise<ParallelTrainer> {
    const trained = passes.map((pass) => trainedBy(pass, frozen));
    const keys = trained.flat().map((p) => p.name);
    const twice = keys.find((key, i) => keys.indexOf(key) !== i);
    if (twice) throw new Error(`two passes of a step train ${twice}`);
    const models: Record<string, Uint8Array[]> = {};
    for (const variant of [passes, ...variants]) {
      const graphs = variant.map((pass) => passGraph(pass, frozen));
      const others = variant.flatMap((pass) => trainedBy(pass, frozen).map((p) => p.name));
      if ([...others].sort().join() !== [...keys].sort().join())
        throw new Error("all variants of a step must have the same parameters");
      models[signature(givenInputs(variant, graphs))] = graphs.map((g) => emitOnnx(g, { weights: frozen }));
    }
    const count = replicas ?? availableParallelism();
    const { layout, chunks, size, ranges } = plan(trained, count, optimizer);
    const stateNames = [...optimizer.state, "ema"];
    const memory = () => new SharedArrayBuffer(size * 4);
    const setup: ReplicaSetup = {
      rank: 0,
      replicas: count,
      size,
      layout,
      chunks,
      passes: passes.map((pass, i) => passPlan(pass, ranges[i])),
      stateNames,
      models,
      updates: updateModels(optimizer, chunks),
      parameters: memory(),
      gradients: Array.from({ length: count }, memory),
      state: stateNames.map(memory),
      squares: new SharedArrayBuffer(count * 8),
      barrier: new SharedArrayBuffer(8),
    };
    const workers = Array.from({ length: count }, (_, rank) =>
      startThread(import.meta.url, "worker", { ...setup, rank }),
    );
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
   * @returns means over the replicas; `grad_norm` is that of the averaged gradient before clipping.
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
    return { metrics };
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
    await Promise.all(this.workers.map(endThread));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

/** What tells the inputs of one variant from those of another. */
export function signature(inputs: readonly (readonly [name: string, shape: readonly number[]])[]): string {
  return inputs
    .map(([name, shape]) => `${name}[${shape}]`)
    .sort()
    .join(" ");
}

/** Replicas, at most so many, that share the micro-batches of a step evenly. */
export function replicasFor(micro: number, most: number): number {
  let count = Math.min(micro, most);
  while (micro % count !== 0) count--;
  return count;
}

/** The parameters that a pass trains. */
export function trainedBy(pass: Pass, frozen?: ReadonlyMap<string, unknown>): ParameterInfo[] {
  if (!pass.loss) return [];
  const free = parametersOf([pass.loss]).filter((p) => !frozen?.has(p.name));
  return pass.trains ? free.filter((p) => pass.trains!(p.name)) : free;
}

/** Forward pass of a pass, and the gradients of what it trains. */
export function passGraph(pass: Pass, frozen?: ReadonlyMap<string, unknown>): Graph {
  const { loss, metrics, outputs } = pass;
  if (!loss) return graph({ ...metrics, ...outputs });
  const parameters = trainedBy(pass, frozen);
  const gradients = grad(
    loss,
    parameters.map((p) => p.value),
  );
  const entries = parameters.map((p, i) => [`grad.${p.name}`, gradients[i]] as const);
  return graph({ loss, ...metrics, ...outputs, ...Object.fromEntries(entries) });
}

function passPlan({ name, loss, metrics = {}, outputs = {}, rate = 1 }: Pass, [start, end]: Range): PassPlan {
  const logged = (metric: string) => (name === "" ? metric : `${name}_${metric}`);
  const names = Object.keys(metrics).map((m) => [m, logged(m)]);
  return {
    metrics: Object.fromEntries(loss ? [["loss", logged("loss")], ...names] : names),
    outputs: Object.keys(outputs),
    start,
    end,
    rate,
    norm: logged("grad_norm"),
  };
}

/** Inputs of a micro-batch: all that no pass before gives. */
function givenInputs(passes: readonly Pass[], graphs: readonly Graph[]): [string, number[]][] {
  const given = new Map<string, number[]>();
  const made = new Set<string>();
  for (const [i, g] of graphs.entries()) {
    for (const v of inputsOf(g)) if (!made.has(nameOf(v))) given.set(nameOf(v), v.shape as number[]);
    for (const name of Object.keys(passes[i].outputs ?? {})) made.add(name);
  }
  return [...given];
}

type Range = readonly [start: number, end: number];

/**
 * Lays the parameters out in one flat array, pass by pass and those that decay first, and cuts it into chunks: whole
 * matrices where the optimiser wants them, else pieces of any parameters. Each goes to the replica with least to do.
 */
function plan(
  trained: readonly (readonly { name: string; shape: number[] }[])[],
  replicas: number,
  optimizer: Optimizer,
): {
  layout: Slot[];
  chunks: Chunk[];
  size: number;
  ranges: Range[];
} {
  const layout: Slot[] = [];
  const chunks: Chunk[] = [];
  let size = 0;
  const ranges = trained.map((parameters, pass): Range => {
    const first = size;
    const work = new Array<number>(replicas).fill(0);
    const add = (chunk: Omit<Chunk, "pass" | "owner">) => {
      const owner = work.indexOf(Math.min(...work));
      work[owner] += chunk.length * Math.min(...(chunk.matrix ?? [1]));
      chunks.push({ ...chunk, pass, owner });
    };
    for (const decays of [true, false]) {
      const group = parameters.filter(({ shape }) => shape.length >= 2 === decays);
      const matrices = group.map(({ name, shape }) => optimizer.updateMatrix && matrixOf(name, shape));
      const place = ({ name, shape }: (typeof group)[number]) => {
        layout.push({ name, shape, start: size, length: sizeOf(shape) });
        size += sizeOf(shape);
      };
      for (const [i, matrix] of matrices.entries()) {
        if (!matrix) continue;
        add({ start: size, length: sizeOf(matrix), decays, matrix });
        place(group[i]);
      }
      const from = size;
      for (const [i, parameter] of group.entries()) if (!matrices[i]) place(parameter);
      for (let start = from; start < size; start += CHUNK)
        add({ start, length: Math.min(CHUNK, size - start), decays });
    }
    return [first, size];
  });
  return { layout, chunks, size, ranges };
}

/** One model for each shape of chunks. */
function updateModels(optimizer: Optimizer, chunks: readonly Chunk[]): ReplicaSetup["updates"] {
  const shapes = new Map(chunks.map(({ matrix }) => [`${matrix ?? ""}`, matrix]));
  return Object.fromEntries(
    Array.from(shapes, ([shape, matrix]) => [shape, emitOnnx(updateGraph(optimizer, matrix))]),
  );
}

/** The optimiser on one matrix, or on one flat chunk of any length. */
function updateGraph(optimizer: Optimizer, matrix?: readonly [number, number]): Graph {
  const shape = matrix ?? [symbol("N")];
  const p = input("p", "float32", shape);
  const state = optimizer.state.map((s) => input(s, "float32", shape));
  const average = input("ema", "float32", shape);
  const scalars = scalarInputs();
  const update = matrix ? optimizer.updateMatrix! : optimizer.update;
  const [next, nextState] = update(p, input("g", "float32", shape), state, scalars);
  return graph({
    "next.p": next,
    ...Object.fromEntries(nextState.map((value, i) => [`next.${optimizer.state[i]}`, value])),
    "next.ema": average.mul(scalars.emaDecay).add(next.sub(next.mul(scalars.emaDecay))),
  });
}
