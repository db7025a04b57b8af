/**
 * @file Which layers stand int8: the network runs once in float, part by part, and beside each layer its int8 twin
 * on the same input. SNR is 10·log₁₀(Σ y² / Σ (y₈ − y)²) of a layer's output without the bias, which would hide errors.
 */

import { type Graph, graph, inputsOf, nameOf, parametersOf, type Value } from "../graph/index.ts";
import { compile } from "../runtime/index.ts";
import { castTensor, floats, type HostTensor, sizeOf, toFloat32 } from "../tensor/index.ts";
import { type Int8Layer, int8Layers, int8Names, int8Product, withInt8 } from "./layers.ts";
import { int8Matrix, rotated } from "./matrix.ts";
import { cut } from "./parts.ts";

/** Float32 weights that are in memory at a time. */
const PART_BYTES = 2 ** 28;
/** A layer whose twin makes no error at all. */
const EXACT = 200;
/** Largest magnitude that float16 has. */
const MOST_HALF = 65504;

export interface Choices {
  /** Bits of a weight. */
  bits: number;
  /** Layers with fewer weights stay float. */
  minimum: number;
  /** dB; layers with a lower SNR on any sample stay float. */
  threshold: number;
}

export type Feeds = Readonly<Record<string, HostTensor>>;

/** What one part of the network needs when it runs. */
export interface CalibratedPart {
  tensors: Map<string, HostTensor>;
  /** dB of each layer that could be int8, by key. */
  snr: Map<string, number>;
}

/**
 * Goes through the network and yields the weights that its parts will run on.
 * @param g with symbols for batch sizes alone; @param read gives a weight.
 * @returns what the network gives in float, for each sample.
 */
export async function* calibrate(
  g: Graph,
  samples: readonly Feeds[],
  read: (name: string) => Promise<HostTensor>,
  choices: Choices,
): AsyncGenerator<CalibratedPart, Feeds[]> {
  const parts = cut(g, PART_BYTES);
  const held: Record<string, HostTensor>[] = samples.map((sample) => ({ ...sample }));
  const results: Record<string, HostTensor>[] = samples.map(() => ({}));
  for (const [i, part] of parts.entries()) {
    const layers = int8Layers(part, choices.minimum);
    const tensors = new Map<string, HostTensor>();
    for (const { name } of parametersOf(part)) tensors.set(name, toFloat32(await read(name)));
    for (const layer of layers) {
      const { axes, rotation } = layer.node.op.int8!;
      const [weight, width] = [weightOf(layer, tensors), rotation?.(layer.shape)];
      const { matrix, scale } = int8Matrix(width ? rotated(weight, width) : weight, axes, choices.bits);
      const names = int8Names(layer.key);
      tensors.set(names.matrix, matrix).set(names.scale, scale);
    }
    const snr = new Map(layers.map(({ key }) => [key, EXACT]));
    const tapped = withTaps(part, layers);
    {
      await using program = await compile(tapped, { weights: tensors });
      for (const [s, feeds] of held.entries()) {
        const needed = inputsOf(tapped).map((v) => [nameOf(v), feeds[nameOf(v)]] as const);
        const out = await program.run(Object.fromEntries(needed));
        for (const { key } of layers) {
          const [signal, noise] = tapNames(key).map((name) => Number(out[name].data[0]));
          const measured = noise === 0 ? EXACT : Math.round(1000 * Math.log10(signal / noise)) / 100;
          snr.set(key, Math.min(snr.get(key)!, measured)); // NaN stays
        }
        for (const name of Object.keys(part.outputs))
          (name in g.outputs ? results[s] : feeds)[name] = out[name];
      }
    }
    const chosen = new Set(layers.map(({ key }) => key).filter((key) => snr.get(key)! >= choices.threshold));
    const used = parametersOf(withInt8(part, chosen)).map(({ name }) => name);
    yield { tensors: new Map(used.map((name) => [name, stored(tensors.get(name)!)])), snr };
    const later = new Set(parts.slice(i + 1).flatMap((next) => inputsOf(next).map(nameOf)));
    for (const feeds of held) for (const name of Object.keys(feeds)) if (!later.has(name)) delete feeds[name];
  }
  return results;
}

/** The rows of the layer. */
function weightOf({ weight, rows: [from, to], shape }: Int8Layer, tensors: ReadonlyMap<string, HostTensor>) {
  const { data } = toFloat32(tensors.get(weight)!);
  const width = sizeOf(shape.slice(1));
  return floats(shape, data.subarray(from * width, to * width));
}

function tapNames(key: string): [signal: string, noise: string] {
  return [`signal of ${key}`, `noise of ${key}`];
}

/** The part, with energy and error energy of each layer. */
function withTaps(part: Graph, layers: readonly Int8Layer[]): Graph {
  const energy = (v: Value) => v.mul(v).sum();
  const taps = layers.flatMap((layer) => {
    const [signal, noise] = tapNames(layer.key);
    const y = layer.node;
    const [out, , ...kernel] = layer.shape;
    const bias = y.inputs[2]?.reshape([out, ...kernel.map(() => 1)]);
    return [
      [signal, energy(bias ? y.sub(bias) : y)],
      [noise, energy(int8Product(layer, y).sub(y))],
    ] as const;
  });
  return graph({ ...part.outputs, ...Object.fromEntries(taps) });
}

/** As it is kept: matrices that stay float in half precision, where it has their range. */
function stored(t: HostTensor): HostTensor {
  if (t.dtype !== "float32" || t.shape.length < 2) return t;
  return toFloat32(t).data.every((v) => Math.abs(v) <= MOST_HALF) ? castTensor(t, "float16") : t;
}

/** dB of `y` where `exact` is right, over all outputs and samples. */
export function snrOf(exact: readonly Feeds[], y: readonly Feeds[]): number {
  let [signal, noise] = [0, 0];
  for (const [s, outputs] of exact.entries())
    for (const [name, { data }] of Object.entries(outputs))
      for (let i = 0; i < data.length; i++) {
        signal += Number(data[i]) ** 2;
        noise += (Number(y[s][name].data[i]) - Number(data[i])) ** 2;
      }
  return noise === 0 ? EXACT : 10 * Math.log10(signal / noise);
}
