/** @file The tiny SDXL folder, adapters and networks for it, and the picture they make. */

import "../../src/platform/node.ts";
import { join } from "node:path";
import { type GenerateOptions, type LoadOptions, SDXL } from "../../src/pipelines/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor, toFloat32 } from "../../src/tensor/index.ts";
import { loadSafetensors } from "../../src/weights/index.ts";
import { goldenPath } from "../parity/golden.ts";

export const TINY = goldenPath("tiny-sdxl");
export const UNET = join(TINY, "unet/diffusion_pytorch_model.safetensors");

export type Tensors = Record<string, HostTensor>;

export async function unetTensors(): Promise<Tensors> {
  return (await loadSafetensors(UNET)).tensors;
}

/** The tensors with noise on the matrices among them. */
export function changed(tensors: Tensors, seed: number, std = 0.05): Tensors {
  const g = new Generator(seed);
  return Object.fromEntries(
    Object.entries(tensors).map(([name, t]) => {
      if (t.shape.length < 2) return [name, t];
      const noise = g.randn(t.shape).data;
      return [
        name,
        floats(
          t.shape,
          toFloat32(t).data.map((v, i) => v + std * noise[i]),
        ),
      ];
    }),
  );
}

export type Modules = Map<string, { down: FloatTensor; up: FloatTensor; alpha: number }>;

/** A random adapter on every linear layer and convolution that SDXL-Lightning adapts. */
export function randomLora(tensors: Tensors, { seed = 1, rank = 3, alpha = 2, std = 0.2 } = {}): Modules {
  const g = new Generator(seed);
  const randn = (shape: readonly number[]) => {
    const t = g.randn(shape);
    return floats(
      shape,
      t.data.map((v) => v * std),
    );
  };
  const modules: Modules = new Map();
  for (const [name, { shape }] of Object.entries(tensors)) {
    const [, path] = /^((?:down|mid|up)_block.*)\.weight$/.exec(name) ?? [];
    if (path === undefined || shape.length < 2) continue;
    const [out, ...rest] = shape;
    const up = randn([out, rank, ...rest.slice(1).map(() => 1)]);
    modules.set(path, { down: randn([rank, ...rest]), up, alpha });
  }
  return modules;
}

/** W + strength · alpha/r · up·down, computed in double precision. */
export function merged(tensors: Tensors, modules: Modules, strength = 1): Tensors {
  const out = { ...tensors };
  for (const [path, { down, up, alpha }] of modules) {
    const t = tensors[`${path}.weight`];
    const data = toFloat32(t).data.slice();
    const rank = down.shape[0];
    const width = down.data.length / rank;
    for (let o = 0; o < t.shape[0]; o++)
      for (let i = 0; i < width; i++) {
        let sum = 0;
        for (let r = 0; r < rank; r++) sum += up.data[o * rank + r] * down.data[r * width + i];
        data[o * width + i] += ((strength * alpha) / rank) * sum;
      }
    out[`${path}.weight`] = floats(t.shape, data);
  }
  return out;
}

/** The RGB bytes of one picture. */
export async function picture(
  options: LoadOptions = {},
  generate: GenerateOptions = { steps: 2, guidance: 1 },
  model = TINY,
): Promise<Uint8Array> {
  await using sdxl = await SDXL.load(model, { threads: 1, ...options });
  const [made] = await sdxl.textToImage("a red lighthouse", generate);
  return made.data;
}

/** The largest difference of two pictures. */
export function apart(a: Uint8Array, b: Uint8Array): number {
  return a.reduce((max, v, i) => Math.max(max, Math.abs(v - b[i])), 0);
}
