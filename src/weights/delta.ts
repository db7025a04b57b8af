/**
 * @file What adapters change, brought to four forms of ΔW. A weight [out, in, k, k] is the matrix [out, width],
 * width = in·k·k; r rank. LoRA is Hu et al. 2022; LoHa, LoKr, and the Tucker cores of convolutions are those of
 * LyCORIS (Yeh et al. 2024), DoRA is Liu et al. 2024.
 */

import { type FloatTensor, floats, type HostTensor, sizeOf, toFloat32 } from "../tensor/index.ts";
import type { LoraKeys } from "./lora_keys.ts";
import type { SafetensorsFile, TensorEntry } from "./safetensors.ts";

/** A place in the file, or what was computed from several of them. */
export type Factor = TensorEntry | HostTensor;

/**
 * product: up [out,r] · down [r,width]. hadamard: (up1·down1) ∘ (up2·down2), shaped alike. kronecker: left [a,b] ⊗
 * right [out/a, width/b]. full: diff, shaped like the parameter.
 */
export type DeltaKind = "product" | "hadamard" | "kronecker" | "full";

/** The change of one parameter at strength 1: scale · ΔW, or, with a magnitude m, m·(W + scale·ΔW)/‖·‖ − W. */
export interface Delta {
  kind: DeltaKind;
  factors: Readonly<Record<string, Factor>>;
  /** Alpha over rank. */
  scale: number;
  /** Undefined where there is none. */
  rank?: number;
  /**
   * DoRA. Norms are of the rows of W + scale·ΔW, one for each output (m [out,1], as in PEFT and in LyCORIS with
   * wd_on_output), or, for LyCORIS without, over outputs and kernel, one for each input (m [1,in,1]).
   */
  magnitude?: Factor;
}

/** Tells why the parts of a module make no change; its text ends a sentence. */
export class Misfit extends Error {}

/** Alpha and what the trainer's settings say where the file has none. */
export interface LoraScaling {
  alpha?: number;
  /** Factor on ΔW in place of alpha over rank. */
  of?(rank: number | undefined): number | undefined;
}

/**
 * The changes of a module, by parameter ("weight", "bias").
 * @param shapes of its parameters.
 * @throws Misfit when parts are missing, stand beside others that exclude them, or do not fit.
 */
export async function deltasOf(
  file: SafetensorsFile,
  { parts }: LoraKeys,
  shapes: { weight: readonly number[]; bias?: readonly number[] },
  { alpha, of }: LoraScaling,
): Promise<Map<"weight" | "bias", Delta>> {
  const rest = new Set(parts.keys());
  rest.delete("alpha");
  const read = new Parts(file, parts, rest);
  const found = new Map<"weight" | "bias", Delta>();
  const put = (name: "weight" | "bias", delta: Omit<Delta, "scale">): void => {
    if (found.has(name)) throw new Misfit("changed in two ways");
    const { rank } = delta;
    const usual = alpha === undefined || rank === undefined ? 1 : alpha / rank;
    found.set(name, { ...delta, scale: delta.kind === "full" ? 1 : (of?.(rank) ?? usual) });
  };
  const { weight, bias } = shapes;
  if (read.has("down", "up", "mid")) put("weight", await productOf(read, weight));
  if (read.some(/^hada_/)) put("weight", await hadamardOf(read, weight));
  if (read.some(/^lokr_/)) put("weight", await kroneckerOf(read, weight));
  for (const part of ["diff", "w_norm"])
    if (read.has(part)) put("weight", { kind: "full", factors: { diff: read.take(part, weight) } });
  for (const part of ["diff_b", "b_norm"])
    if (read.has(part)) {
      if (!bias) throw new Misfit("the module has no bias");
      put("bias", { kind: "full", factors: { diff: read.take(part, bias) } });
    }
  if (read.has("magnitude", "dora_scale")) {
    const delta = found.get("weight");
    if (!delta) throw new Misfit("incomplete");
    found.set("weight", { ...delta, magnitude: magnitudeOf(read, weight) });
  }
  if (rest.size > 0) throw new Misfit("incomplete");
  return found;
}

/** Parts of a module, each taken once. */
class Parts {
  private readonly file: SafetensorsFile;
  private readonly keys: ReadonlyMap<string, string>;
  private readonly rest: Set<string>;

  constructor(file: SafetensorsFile, keys: ReadonlyMap<string, string>, rest: Set<string>) {
    this.file = file;
    this.keys = keys;
    this.rest = rest;
  }

  has(...parts: readonly string[]): boolean {
    return parts.some((part) => this.rest.has(part));
  }

  some(pattern: RegExp): boolean {
    return [...this.rest].some((part) => pattern.test(part));
  }

  entry(part: string): TensorEntry {
    const key = this.keys.get(part);
    if (key === undefined) throw new Misfit("incomplete");
    return this.file.entries.get(key)!;
  }

  /** The tensor's place, in a shape that may differ in ones at the end, or in how the axes after the first are split. */
  take(part: string, shape: readonly number[]): TensorEntry {
    const entry = this.entry(part);
    const given = entry.shape;
    const fits = sizeOf(given) === sizeOf(shape) && (given[0] ?? 1) === (shape[0] ?? 1);
    if (!fits || sizeOf(shape) === 0) throw new Misfit(`${part} is [${given}], needs [${shape}]`);
    this.rest.delete(part);
    return { ...entry, shape };
  }

  async values(part: string, shape: readonly number[]): Promise<FloatTensor> {
    const { shape: taken } = this.take(part, shape);
    return floats(taken, toFloat32(await this.file.read(this.keys.get(part)!)).data);
  }
}

function matrixOf([out, ...rest]: readonly number[]): { out: number; width: number; kernel: number } {
  const [, ...kernel] = rest;
  return { out, width: sizeOf(rest), kernel: sizeOf(kernel) };
}

/** LoRA and LoCon; with a core (`lora_mid` [r,r,k,k]) the kernel is there, and down is [r,in,1,1]. */
async function productOf(read: Parts, weight: readonly number[]): Promise<Omit<Delta, "scale">> {
  const { out, width, kernel } = matrixOf(weight);
  if (weight.length < 2) throw new Misfit(`a product cannot change [${weight}]`);
  const [rank] = read.entry("down").shape;
  if (!read.has("mid"))
    return {
      kind: "product",
      factors: { up: read.take("up", [out, rank]), down: read.take("down", [rank, width]) },
      rank,
    };
  const core = read.entry("mid").shape;
  const mid = await read.values("mid", [core[0], rank, kernel]);
  const down = tucker(mid, await read.values("down", [rank, width / kernel]));
  return { kind: "product", factors: { up: read.take("up", [out, core[0]]), down }, rank };
}

/** LoHa. With cores, w_a is [r,out] and w_b [r,in]. */
async function hadamardOf(read: Parts, weight: readonly number[]): Promise<Omit<Delta, "scale">> {
  const { out, width, kernel } = matrixOf(weight);
  const factors: Record<string, Factor> = {};
  let rank = 0;
  for (const i of [1, 2]) {
    const [a, b, t] = [`hada_w${i}_a`, `hada_w${i}_b`, `hada_t${i}`];
    rank = read.entry(b).shape[0];
    if (!read.has(t)) {
      factors[`up${i}`] = read.take(a, [out, rank]);
      factors[`down${i}`] = read.take(b, [rank, width]);
      continue;
    }
    const rows = read.entry(a).shape[0];
    factors[`up${i}`] = transpose(await read.values(a, [rows, out]));
    const core = await read.values(t, [rows, rank, kernel]);
    factors[`down${i}`] = tucker(core, await read.values(b, [rank, width / kernel]));
  }
  const { shape } = read.entry("hada_w1_b"); // its rank counts, as in LyCORIS and ComfyUI
  return { kind: "hadamard", factors, rank: shape[0] };
}

/** LoKr: each side whole, or a product; the second one may have a core. Whole on both sides, it has no rank. */
async function kroneckerOf(read: Parts, weight: readonly number[]): Promise<Omit<Delta, "scale">> {
  const { out, width, kernel } = matrixOf(weight);
  let rank: number | undefined;
  let left: Factor;
  if (read.has("lokr_w1")) left = read.take("lokr_w1", pair(read.entry("lokr_w1").shape));
  else {
    const [a] = read.entry("lokr_w1_a").shape;
    const [, b] = read.entry("lokr_w1_b").shape;
    rank = read.entry("lokr_w1_b").shape[0];
    left = matmul(await read.values("lokr_w1_a", [a, rank]), await read.values("lokr_w1_b", [rank, b]));
  }
  const [a, b] = left.shape;
  const [c, d] = [out / a, width / b];
  let right: Factor;
  if (!Number.isInteger(c) || !Number.isInteger(d) || d % kernel !== 0)
    throw new Misfit(`lokr_w1 is [${left.shape}], which does not divide [${weight}]`);
  if (read.has("lokr_w2")) right = read.take("lokr_w2", [c, d]);
  else {
    rank = read.entry("lokr_w2_b").shape[0];
    if (!read.has("lokr_t2"))
      right = matmul(await read.values("lokr_w2_a", [c, rank]), await read.values("lokr_w2_b", [rank, d]));
    else {
      const rows = read.entry("lokr_w2_a").shape[0];
      const core = await read.values("lokr_t2", [rows, rank, kernel]);
      const inner = tucker(core, await read.values("lokr_w2_b", [rank, d / kernel]));
      right = matmul(transpose(await read.values("lokr_w2_a", [rows, c])), inner);
    }
  }
  return { kind: "kronecker", factors: { left, right }, rank };
}

function pair(shape: readonly number[]): [number, number] {
  const [a = 0, ...rest] = shape;
  return [a, sizeOf(rest)];
}

/** PEFT's is of outputs however it lies ([1,out,1,1]); `dora_scale` is of inputs where it is [1,in,…]. */
function magnitudeOf(read: Parts, weight: readonly number[]): TensorEntry {
  const [out, inputs = 1] = weight;
  const part = read.has("magnitude") ? "magnitude" : "dora_scale";
  const { shape } = read.entry(part);
  const n = sizeOf(shape);
  const ofInputs = part === "dora_scale" && shape[0] === 1 && out !== 1 && n === inputs;
  if (n !== (ofInputs ? inputs : out))
    throw new Misfit(`${part} is [${shape}], needs one for each of ${out} outputs`);
  return { ...read.take(part, shape), shape: ofInputs ? [1, inputs, 1] : [out, 1] };
}

/** a [m,n] · b [n,p] */
function matmul(a: FloatTensor, b: FloatTensor): FloatTensor {
  const [m, n] = a.shape;
  const p = b.shape[1];
  const out = floats([m, p]);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      const v = a.data[i * n + j];
      for (let k = 0; k < p; k++) out.data[i * p + k] += v * b.data[j * p + k];
    }
  return out;
}

function transpose({ shape: [rows, columns], data }: FloatTensor): FloatTensor {
  const out = floats([columns, rows]);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++) out.data[j * rows + i] = data[i * columns + j];
  return out;
}

/** Σ_j core [i,j,k] · down [j,q] → [i, q·k] */
function tucker(core: FloatTensor, down: FloatTensor): FloatTensor {
  const [I, J, K] = core.shape;
  const Q = down.shape[1];
  const out = floats([I, Q * K]);
  for (let i = 0; i < I; i++)
    for (let j = 0; j < J; j++)
      for (let q = 0; q < Q; q++) {
        const v = down.data[j * Q + q];
        for (let k = 0; k < K; k++) out.data[(i * Q + q) * K + k] += v * core.data[(i * J + j) * K + k];
      }
  return out;
}
