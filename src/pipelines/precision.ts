/** @file In which precision the networks of a model run, and what measures its int8 layers. B batch, h w latent. */

import { createHash } from "node:crypto";
import { join, resolve } from "node:path";
import { type Graph, parametersOf } from "../graph/index.ts";
import { cacheFolder } from "../platform/index.ts";
import type { Choices, Feeds } from "../quantize/index.ts";
import type { Device } from "../runtime/index.ts";
import { alphasCumprod } from "../samplers/index.ts";
import { type FloatTensor, floats, Generator, sizeOf } from "../tensor/index.ts";
import type { Components } from "./components.ts";
import type { Prompt } from "./prompts.ts";

/** "auto": int8 for networks of more than 2 GiB in float32 on a CPU. The VAE is always float. */
export const PRECISIONS = ["auto", "fp32", "int8"] as const;
export type Precision = (typeof PRECISIONS)[number];

/** Bytes in float32 from which on a network is large. */
const LARGE = 2 ** 31;

export interface PrecisionOptions {
  /** Default "auto". */
  precision?: Precision;
  /** Bytes of weights in float32 above which "auto" is int8; default 2 GiB. */
  large?: number;
  /** Overrides how layers are chosen; for tests. */
  choices?: Partial<Choices>;
  /** Gets a sentence on what is done once and takes a while. */
  onNotice?(sentence: string): void;
  /** Default "cpu". */
  device?: Device;
}

/**
 * How a network runs. The text encoders are int8 where they are large, the UNet also where that is asked for.
 * @throws a sentence when int8 is asked for on another device than the CPU.
 */
export function precisionOf(
  network: "text" | "unet",
  g: Graph,
  { precision = "auto", device = "cpu", large = LARGE }: PrecisionOptions,
): "fp32" | "int8" {
  if (precision === "int8" && device !== "cpu")
    throw new Error(`precision int8 needs device cpu, got ${device}; use fp32 there`);
  if (precision === "fp32" || device !== "cpu") return "fp32";
  return floatBytes(g) > large || (precision === "int8" && network === "unet") ? "int8" : "fp32";
}

/** Bytes of the weights of a graph in float32. */
export function floatBytes(g: Graph): number {
  return parametersOf(g).reduce((sum, { shape }) => sum + 4 * sizeOf(shape), 0);
}

/** Where the int8 weights of a network lie; the name is that of the model and tells files of the same name apart. */
export function int8Path({ name }: Components, network: "text" | "unet", sources: readonly string[]): string {
  const hash = createHash("sha256").update(JSON.stringify(sources.map((path) => resolve(path))));
  const readable = name.replace(/[^\w.-]+/g, "-");
  return join(cacheFolder(), "int8", `${readable}-${network}-${hash.digest("hex").slice(0, 12)}.safetensors`);
}

/** Prompts on which layers are measured, one for each level of noise. */
export const SAMPLE_PROMPTS = [
  "a photo of an astronaut riding a horse on the beach, golden hour, highly detailed",
  "portrait of an old fisherman, oil painting",
  "a red apple",
  "",
];
/** Shares of the training timesteps: those of a few-step sampler. */
const SAMPLE_TIMES = [0.999, 0.749, 0.499, 0.249];
/** Latent side on which layers are measured; larger ones say the same. */
export const SAMPLE_SIDE = 64;

/**
 * Inputs of a UNet on which its layers are measured, a batch of one each: soft random pictures under noise, at
 * different timesteps and with different prompts.
 */
export function unetSamples(
  { unet, scheduler }: Components,
  side: number,
  { hidden, pooled }: Prompt,
): Feeds[] {
  const g = new Generator(0);
  const alphas = alphasCumprod(scheduler);
  const row = ({ shape: [B, ...rest], data }: FloatTensor, i: number) => {
    const width = data.length / B;
    return floats([1, ...rest], data.slice(i * width, (i + 1) * width));
  };
  return Array.from({ length: hidden.shape[0] }, (_, i) => {
    const timestep = Math.round(SAMPLE_TIMES[i % SAMPLE_TIMES.length] * alphas.length);
    const alpha = alphas[Math.min(timestep, alphas.length - 1)];
    const shape = [1, unet.in_channels, side, side];
    const soft = softPicture(g, unet.in_channels, side);
    const noise = g.randn(shape).data;
    const pixels = 8 * side;
    return {
      sample: floats(
        shape,
        noise.map((n, at) => Math.sqrt(alpha) * soft[at] + Math.sqrt(1 - alpha) * n),
      ),
      timestep: floats([1], [timestep]),
      hidden: row(hidden, i),
      pooled: row(pooled, i),
      time_ids: floats([1, 6], [pixels, pixels, 0, 0, pixels, pixels]),
    };
  });
}

/** Latents that change slowly: waves of random direction and phase, deviation about 1. */
function softPicture(g: Generator, channels: number, side: number): Float32Array {
  const out = new Float32Array(channels * side * side);
  for (let c = 0; c < channels; c++) {
    const [fx, fy, phase] = [4 * g.random() - 2, 4 * g.random() - 2, 2 * Math.PI * g.random()];
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++)
        out[(c * side + y) * side + x] =
          Math.SQRT2 * Math.sin((2 * Math.PI * (fx * x + fy * y)) / side + phase);
  }
  return out;
}
