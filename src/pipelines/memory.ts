/** @file What a picture takes of memory, and whether the machine has it. */

import { type Graph, peakBytes } from "../graph/index.ts";
import { rootScope } from "../nn/index.ts";
import { int8Layers, MINIMUM } from "../quantize/index.ts";
import { sizeOf } from "../tensor/index.ts";
import type { Components } from "./components.ts";
import { floatBytes, type PrecisionOptions, precisionOf } from "./precision.ts";
import { GRAPHS, vaeGraph } from "./programs.ts";
import { tilesFor, type VaeTiling } from "./tiling.ts";

/** Bytes that one network takes. */
export interface PartPlan {
  precision: "fp32" | "int8";
  weights: number;
  activations: number;
}

export interface MemoryPlan {
  parts: Readonly<Record<"text encoders" | "UNet" | "VAE decoder", PartPlan>>;
  /** Bytes that loading all networks takes, and that drawing with them takes. */
  loading: number;
  drawing: number;
}

/** Of the process before it loads anything. */
const PROCESS = 2 ** 28;
/** Memory while weights are loaded over that afterwards: float weights are converted and packed one by one. */
const LOADING = { fp32: 1.3, int8: 1.1 };

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

/** Estimates from a model's networks, whose graphs are built once; nothing is loaded. Adapters are not counted. */
export function memoryPlanner(model: Components, run: PrecisionOptions) {
  const [text, unet] = [GRAPHS.text(model, rootScope()), GRAPHS.unet(model, rootScope())];
  const graphs = { text, unet, vae: vaeGraph(model) };
  const known = new Map<string, MemoryPlan>();
  return (size: PlanSize): MemoryPlan => {
    const key = JSON.stringify(size);
    const plan = known.get(key) ?? estimate(model, graphs, run, size);
    known.set(key, plan);
    return plan;
  };
}

function estimate(
  { vae: autoencoder, tokenizers }: Components,
  { text, unet, vae }: Readonly<Record<"text" | "unet" | "vae", Graph>>,
  run: PrecisionOptions,
  { width, height, batch, rows, tiling }: PlanSize,
): MemoryPlan {
  const [H, W] = [height / autoencoder.factor, width / autoencoder.factor];
  const T = tokenizers[0].maxLength;
  const tiles = tilesFor(autoencoder, [H, W], tiling);
  const decoded = tiles
    ? { B: 1, H: Math.min(H, tiles.side), W: Math.min(W, tiles.side) }
    : { B: batch, H, W };
  const parts = {
    "text encoders": planOf(text, { B: batch }, precisionOf("text", text, run)),
    UNet: planOf(unet, { B: rows, H, W, T }, precisionOf("unet", unet, run)),
    "VAE decoder": planOf(vae, decoded, "fp32"),
  };
  const all = Object.values(parts);
  const most = (of: (part: PartPlan) => number) => Math.max(...all.map(of));
  const weights = PROCESS + all.reduce((sum, part) => sum + part.weights, 0);
  return {
    parts,
    loading: weights + most((part) => part.weights * (LOADING[part.precision] - 1)),
    drawing: weights + most((part) => part.activations),
  };
}

function planOf(g: Graph, sizes: Readonly<Record<string, number>>, precision: "fp32" | "int8"): PartPlan {
  const quantised = precision === "int8" ? int8Layers(g, MINIMUM) : [];
  const weights = quantised.reduce((sum, { shape }) => sum - 3 * sizeOf(shape), floatBytes(g));
  return { precision, weights, activations: peakBytes(g, sizes) };
}

/** `7.2 GB`; small amounts in MB. */
function bytesText(bytes: number): string {
  return bytes < 1e9 ? `${Math.ceil(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** The plan as lines: one for each network, and one for all. */
export function planText({ parts, loading, drawing }: MemoryPlan): string[] {
  const lines = Object.entries(parts).map(
    ([name, { precision, weights, activations }]) =>
      `${name}: ${precision}, weights ${bytesText(weights)}, activations ${bytesText(activations)}`,
  );
  return [...lines, `loading ${bytesText(loading)}, drawing ${bytesText(drawing)}`];
}

/** @throws one sentence when there is no room for what is begun. */
export function checkMemory(
  { parts: { UNet: unet }, loading, drawing }: MemoryPlan,
  available: number,
  begun: "loading" | "drawing",
  what: string,
): void {
  const needed = { loading, drawing: Math.max(loading, drawing) }[begun];
  if (needed <= available) return;
  const ways = [
    ...(unet.precision === "fp32" ? ["precision int8"] : []),
    ...(begun === "drawing" && loading <= available ? ["a smaller size"] : []),
  ];
  throw new Error(
    `${what} with an ${unet.precision} UNet needs ${bytesText(needed)} of memory, ` +
      `${bytesText(available)} are free; use ${ways.join(" or ") || "a machine with more memory"}`,
  );
}
