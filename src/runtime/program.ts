/** @file Graph → Program: an ONNX Runtime session with named tensors in and out, and state that stays in it. */

import type { InferenceSession, Tensor, TypedTensor } from "onnxruntime-common";
import {
  type Graph,
  graph,
  inputsOf,
  isStatic,
  nameOf,
  parametersOf,
  staticShape,
  typeText,
  type Value,
} from "../graph/index.ts";
import { type ExternalTensor, emitOnnx } from "../onnx/index.ts";
import { platform } from "../platform/index.ts";
import { type DType, type HostTensor, sizeOf, zeros } from "../tensor/index.ts";
import { type FileTensor, WeightFiles } from "./place.ts";

export type Device = "cpu" | "webgpu" | "cuda";

export interface CompileOptions {
  /** Parameters with fixed values, in memory or in files. The others become inputs of the program. */
  weights?: ReadonlyMap<string, HostTensor | ExternalTensor | FileTensor>;
  /** Default "cpu". */
  device?: Device;
  /** Threads within an operator; default all cores. */
  threads?: number;
  /**
   * Outputs that become inputs of the next run (output name → input or parameter name), such as parameters
   * and optimiser state. They live on the device and are reached by `get` and `set`.
   */
  state?: Readonly<Record<string, string>>;
  /**
   * Keeps memory from run to run, which saves small networks time; large ones keep as much as they ever took, twice over.
   * On CPU; default true.
   */
  arena?: boolean;
  /** Writes ONNX Runtime's profile (JSON) with this prefix. */
  profile?: string;
}

/**
 * Microseconds that threads of a program look for work before they sleep: longer than an operator of a small network
 * waits for the next, and short enough not to take a core from the program that runs after this one, as ONNX Runtime's
 * own milliseconds do.
 */
const SPIN = "200";

/** What ONNX Runtime says of a device that is not there: no adapter, or no library for it. */
const MISSING_DEVICE = /WebGpuContext|adapter|shared library|AppendExecutionProvider/;

/**
 * Builds a session for a graph.
 * @throws a sentence when the device is not there.
 */
export async function compile(g: Graph, options: CompileOptions = {}): Promise<Program> {
  const { device = "cpu", threads = 0, state = {}, weights = new Map(), arena = true, profile } = options;
  await using files = await WeightFiles.open(weights);
  const onDevice = device !== "cpu";
  const model = await files.model(emitOnnx(g, { weights: files.weights, castsLate: !onDevice }));
  const { InferenceSession } = platform();
  const session = await InferenceSession.create(model as string, {
    ...files.options,
    executionProviders: onDevice ? [device, "cpu"] : ["cpu"],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    graphOptimizationLevel: "all",
    enableCpuMemArena: arena,
    extra: { session: { intra_op: { spin_duration_us: SPIN } } },
    logSeverityLevel: 4, // errors are thrown
    preferredOutputLocation:
      device === "webgpu"
        ? Object.fromEntries(Object.keys(state).map((k) => [k, "gpu-buffer" as const]))
        : undefined,
    ...(profile ? { enableProfiling: true, profileFilePrefix: profile } : {}),
  }).catch((error: Error) => {
    if (!MISSING_DEVICE.test(error.message)) throw error;
    throw new Error(`device ${device} cannot be used on this machine; use "cpu"`, { cause: error });
  });
  const leaves = [
    ...inputsOf(g),
    ...parametersOf(g)
      .filter((p) => !weights.has(p.name))
      .map((p) => p.value),
  ];
  return new Program(session, g, leaves, state, device);
}

/** What runs a graph until it is disposed of. */
export interface Runnable extends AsyncDisposable {
  run(feeds: Readonly<Record<string, HostTensor>>): Promise<Record<string, HostTensor>>;
}

/** Runs one graph. Free it with `dispose` (or `await using`). */
export class Program implements Runnable {
  private readonly session: InferenceSession;
  private readonly inputs: ReadonlyMap<string, Value>;
  private readonly outputs: ReadonlyMap<string, Value>;
  /** Current and next buffer of each state input; they swap after every run. */
  private readonly current = new Map<string, Tensor>();
  private readonly next = new Map<string, Tensor>();
  private readonly state: Readonly<Record<string, string>>;
  private readonly device: Device;

  /** Use `compile`. */
  constructor(
    session: InferenceSession,
    g: Graph,
    leaves: readonly Value[],
    state: Readonly<Record<string, string>>,
    device: Device,
  ) {
    this.session = session;
    this.inputs = new Map(leaves.map((v) => [nameOf(v), v]));
    this.outputs = new Map(Object.entries(g.outputs));
    this.state = state;
    this.device = device;
    for (const [out, name] of Object.entries(state)) {
      const a = this.outputs.get(out);
      const b = this.inputs.get(name);
      if (!a || !b || typeText(a) !== typeText(b))
        throw new Error(`state ${out} → ${name}: ${a && typeText(a)} does not fit ${b && typeText(b)}`);
      this.set(name, zeros(b.dtype, staticShape(b.shape)));
      if (device !== "webgpu") this.next.set(name, toOrt(zeros(b.dtype, staticShape(b.shape))));
    }
  }

  /** Names of the state inputs. */
  get stateNames(): string[] {
    return Object.values(this.state);
  }

  /** Replaces a state tensor (copies). */
  set(name: string, value: HostTensor): void {
    const v = this.inputs.get(name);
    if (!v) throw new Error(`${name} is not an input; inputs are ${[...this.inputs.keys()].join(", ")}`);
    check(name, v, value);
    this.current.set(name, toOrt({ ...value, data: value.data.slice() }));
  }

  /** Reads a state tensor (copies). */
  async get(name: string): Promise<HostTensor> {
    const t = this.current.get(name);
    if (!t) throw new Error(`${name} is not state of this program`);
    // onnxruntime-node does not read GPU buffers, but a session that returns its input does.
    const host = t.location === "gpu-buffer" ? await this.copied(name, t) : fromOrt(t);
    return { ...host, data: host.data.slice() };
  }

  private async copied(name: string, t: Tensor): Promise<HostTensor> {
    const copy = emitOnnx(graph({ copy: this.inputs.get(name)! }));
    const session = await platform().InferenceSession.create(copy, {
      executionProviders: [this.device, "cpu"],
      logSeverityLevel: 4,
    });
    const { copy: result } = await session.run({ [name]: t });
    await session.release();
    return fromOrt(result as Tensor);
  }

  /**
   * One execution. `feeds` are the inputs that are not state; the result holds the outputs that are not state.
   * Blocks the calling thread while it computes.
   */
  async run(feeds: Readonly<Record<string, HostTensor>>): Promise<Record<string, HostTensor>> {
    const all: Record<string, Tensor> = Object.fromEntries(this.current);
    for (const [name, value] of Object.entries(feeds)) {
      const v = this.inputs.get(name);
      if (!v) throw new Error(`${name} is not an input; inputs are ${[...this.inputs.keys()].join(", ")}`);
      check(name, v, value);
      all[name] = toOrt(value);
    }
    for (const name of this.inputs.keys()) if (!(name in all)) throw new Error(`input ${name} is missing`);
    const fetches: Record<string, Tensor | null> = {};
    for (const out of this.outputs.keys()) fetches[out] = this.next.get(this.state[out]) ?? null;
    const results = await this.session.run(all, fetches);
    for (const [out, name] of Object.entries(this.state)) {
      const old = this.current.get(name)!;
      this.current.set(name, results[out] as Tensor);
      if (this.device === "webgpu") {
        if (old.location === "gpu-buffer") old.dispose();
      } else this.next.set(name, old);
    }
    return Object.fromEntries(
      [...this.outputs.keys()]
        .filter((name) => !(name in this.state))
        .map((name) => [name, fromOrt(results[name] as Tensor)]),
    );
  }

  /** Ends profiling and writes its file, when `profile` was given. */
  endProfiling(): void {
    this.session.endProfiling();
  }

  async dispose(): Promise<void> {
    await this.session.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

function check(name: string, v: Value, value: HostTensor): void {
  const fits =
    v.dtype === value.dtype &&
    v.rank === value.shape.length &&
    v.shape.every((d, i) => typeof d !== "number" || d === value.shape[i]);
  if (!fits || (isStatic(v.shape) && value.data.length !== sizeOf(v.shape)))
    throw new Error(`input ${name} is ${typeText(v)}, got ${value.dtype}[${value.shape}]`);
}

function toOrt(t: HostTensor): Tensor {
  const { Tensor } = platform();
  return new Tensor(t.dtype as "float32", t.data as Float32Array, t.shape as number[]);
}

function fromOrt(t: Tensor): HostTensor {
  return { dtype: t.type as DType, shape: t.dims, data: (t as TypedTensor<"float32">).data };
}
