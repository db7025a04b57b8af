/** @file What a picture takes of memory, and whether the machine has it. */

import { type Graph, graph, peakBytes } from "../graph/index.ts";
import { rootScope } from "../nn/index.ts";
import { int8Layers, MINIMUM } from "../quantize/index.ts";
import { DTYPES, sizeOf } from "../tensor/index.ts";
import type { Network } from "./base.ts";
import type { Components } from "./components.ts";
import { floatBytes, type PrecisionOptions, precisionOf } from "./precision.ts";
import { GRAPHS, isInSteps, stepsOf, vaeGraph } from "./programs.ts";
import { tilesFor, type VaeTiling } from "./tiling.ts";

/** Bytes that one network takes. */
export interface PartPlan {
  precision: "fp32" | "int8";
  weights: number;
  /** Beside them while they are loaded, and while the network runs. */
  loading: number;
  activations: number;
}

/** What is loaded and released as one, in the order of use. */
export const PROGRAMS = ["text encoders", "UNet", "VAE decoder"] as const;
export type ProgramName = (typeof PROGRAMS)[number];

export interface MemoryPlan {
  parts: Readonly<Record<ProgramName, PartPlan>>;
  /** Bytes that loading all networks takes, and that drawing with them takes. */
  loading: number;
  drawing: number;
  /** The same where they take turns, one in memory at a time: the most that one of them takes. */
  alone: { loading: number; drawing: number };
  /** Bytes that may be used; undefined where that is not known. */
  available?: number;
  /** Which others may stay in memory while one is loaded and works. */
  beside: Readonly<Record<ProgramName, readonly ProgramName[]>>;
  /** Whether pictures are decoded by tiles. */
  tiled: boolean;
}

/** Of the process before it loads anything. */
const PROCESS = 2 ** 28;
/**
 * Memory beside the weights while they are loaded, as a share of them: they are packed one by one. Those of half
 * precision are there twice, converted and then copied; `npm run bench memory` and `sdxl` measure it.
 */
const LOADING = { int8: 0.1, fp32: 0.3, halves: 1.4 };

export interface PlanSize {
  /** Pixels. */
  width: number;
  height: number;
  /** Pictures, and rows of the UNet's batch: twice as many with guidance. */
  batch: number;
  rows: number;
  /** Of the VAE. */
  tiling: VaeTiling;
}

/** Those that are worth most in memory go first: what takes longest to load and is used next. */
const WORTH: readonly ProgramName[] = ["UNet", "VAE decoder", "text encoders"];

export type MemoryPlanner = (size: PlanSize) => MemoryPlan;

/**
 * The networks of some graphs, with what is kept from run to run as outputs, and whether their files have fewer than 32
 * bits a weight.
 */
type Planned = Readonly<Record<ProgramName, { g: Graph; halves: boolean; precision: "fp32" | "int8" }>>;

/**
 * Estimates from a model's networks, whose graphs are built once; nothing is loaded. Adapters are not counted.
 * @param available bytes; without them everything may stay in memory.
 */
export async function memoryPlanner(
  model: Components,
  run: PrecisionOptions,
  available?: number,
): Promise<MemoryPlanner> {
  const [text, unet] = [GRAPHS.text(model, rootScope()), GRAPHS.unet(model, rootScope())];
  const halves = async (network: Network) =>
    [...(await model.weights(network)).tensors.values()].some(({ dtype }) => DTYPES[dtype].bytes < 4);
  const networks: Planned = {
    "text encoders": {
      g: text,
      halves: (await halves("text_encoder")) || (await halves("text_encoder_2")),
      precision: precisionOf("text", text, run),
    },
    UNet: {
      g: graph({ ...unet.outputs, ...(isInSteps(unet, model, run) ? stepsOf(unet)[0].outputs : {}) }),
      halves: await halves("unet"),
      precision: precisionOf("unet", unet, run),
    },
    "VAE decoder": { g: vaeGraph(model), halves: await halves("vae"), precision: "fp32" },
  };
  const known = new Map<string, MemoryPlan>();
  return (size) => {
    const key = JSON.stringify(size);
    const plan = known.get(key) ?? estimate(model, networks, size, available);
    known.set(key, plan);
    return plan;
  };
}

function estimate(
  { vae: autoencoder, tokenizers }: Components,
  networks: Planned,
  { width, height, batch, rows, tiling }: PlanSize,
  available?: number,
): MemoryPlan {
  const [H, W] = [height / autoencoder.factor, width / autoencoder.factor];
  const T = tokenizers[0].maxLength;
  const tiles = tilesFor(autoencoder, [H, W], tiling);
  const decoded = tiles
    ? { B: 1, H: Math.min(H, tiles.side), W: Math.min(W, tiles.side) }
    : { B: batch, H, W };
  const parts = {
    "text encoders": planOf(networks["text encoders"], { B: batch }),
    UNet: planOf(networks.UNet, { B: rows, H, W, T }),
    "VAE decoder": planOf(networks["VAE decoder"], decoded),
  };
  const all = Object.values(parts);
  const most = (of: (part: PartPlan) => number) => Math.max(...all.map(of));
  const weights = PROCESS + all.reduce((sum, part) => sum + part.weights, 0);
  return {
    parts,
    loading: weights + most((part) => part.loading),
    drawing: weights + most((part) => part.activations),
    alone: {
      loading: PROCESS + most((part) => part.weights + part.loading),
      drawing: PROCESS + most((part) => part.weights + part.activations),
    },
    available,
    beside: Object.fromEntries(
      PROGRAMS.map((name) => [name, staying(name, parts, available)]),
    ) as unknown as MemoryPlan["beside"],
    tiled: tiles !== undefined,
  };
}

function staying(name: ProgramName, parts: MemoryPlan["parts"], available = Infinity): ProgramName[] {
  const own = parts[name];
  let left = available - PROCESS - own.weights - Math.max(own.activations, own.loading);
  return WORTH.filter((other) => {
    const stays = other !== name && parts[other].weights <= left;
    if (stays) left -= parts[other].weights;
    return stays;
  });
}

/** Whether all networks may stay in memory. */
export function areTogether({ beside }: MemoryPlan): boolean {
  return Object.values(beside).every((others) => others.length === PROGRAMS.length - 1);
}

function planOf(
  { g, halves, precision }: Planned[ProgramName],
  sizes: Readonly<Record<string, number>>,
): PartPlan {
  const quantised = precision === "int8" ? int8Layers(g, MINIMUM) : [];
  const weights = quantised.reduce((sum, { shape }) => sum - 3 * sizeOf(shape), floatBytes(g));
  const loading = weights * LOADING[precision === "fp32" && halves ? "halves" : precision];
  return { precision, weights, loading, activations: peakBytes(g, sizes) };
}

/** `7.2 GB`; small amounts in MB. */
function bytesText(bytes: number): string {
  return bytes < 1e9 ? `${Math.ceil(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** The plan as lines: one for each network, and one for all. */
export function planText(plan: MemoryPlan): string[] {
  const { parts, loading, drawing, alone, available, beside } = plan;
  const lines = PROGRAMS.map((name) => {
    const { precision, weights, activations } = parts[name];
    const goesFor = PROGRAMS.filter((other) => other !== name && !beside[other].includes(name));
    const turn = goesFor.length > 0 ? `; released for ${goesFor.join(" and ")}` : "";
    return `${name}: ${precision}, weights ${bytesText(weights)}, activations ${bytesText(activations)}${turn}`;
  });
  const need = (what: { loading: number; drawing: number }) =>
    `loading ${bytesText(what.loading)}, drawing ${bytesText(what.drawing)}`;
  const free = available === undefined ? "" : `; ${bytesText(available)} are free`;
  const all = `all in memory: ${need({ loading, drawing })}`;
  return [...lines, areTogether(plan) ? all + free : `${all}${free}; taking turns: ${need(alone)} at least`];
}

/**
 * @param begun what is to fit: loading, or drawing as well.
 * @throws one sentence when the largest network does not.
 */
export function checkMemory(
  { parts, alone, available = Infinity, tiled }: MemoryPlan,
  begun: "loading" | "drawing",
  what: string,
): void {
  const isDrawing = begun === "drawing" && alone.loading <= available;
  const takes = ({ weights, loading, activations }: PartPlan) =>
    PROCESS + weights + (isDrawing ? activations : loading);
  const largest = PROGRAMS.reduce((a, b) => (takes(parts[b]) > takes(parts[a]) ? b : a));
  const needed = takes(parts[largest]);
  if (needed <= available) return;
  const { precision } = parts[largest];
  const ways = [
    ...(largest === "UNet" && precision === "fp32" ? ["precision int8"] : []),
    ...(largest === "VAE decoder" && isDrawing && !tiled ? ["VAE tiling"] : []),
    ...(isDrawing ? ["a smaller size"] : []),
  ];
  throw new Error(
    `${what} needs ${bytesText(needed)} of memory for the ${largest} in ${precision} alone, ` +
      `${bytesText(available)} are free; use ${ways.join(" or ") || "a machine with more memory"}`,
  );
}
