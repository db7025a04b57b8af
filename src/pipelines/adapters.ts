/** @file Adapter files on the networks of a model, and their changes as weights that ONNX Runtime folds once. */

import { type ParameterInfo, parameter } from "../graph/index.ts";
import type { Change } from "../nn/index.ts";
import { toFloat32 } from "../tensor/index.ts";
import {
  type Delta,
  type Factor,
  type LoraNetwork,
  type LoraTarget,
  readLora,
  SafetensorsFile,
  unetTable,
} from "../weights/index.ts";
import type { Components, Lora } from "./components.ts";
import type { PlacedWeights } from "./folder.ts";

/** Programs that adapters change: both text encoders together, and the UNet. */
export type Part = "text" | "unet";

/** Shapes of the parameters of each part by name; those of the text encoders are below `1.` and `2.` */
export type PartShapes = Readonly<Record<Part, ReadonlyMap<string, readonly number[]>>>;

/** The changes of an adapter file, by part and parameter. */
export interface LoadedLora extends Lora {
  /** Tells its file, as it was read, from others. */
  version: string;
  deltas: Readonly<Record<Part, ReadonlyMap<string, Delta>>>;
  /** What the file holds that has no use here, one sentence each. */
  warnings: readonly string[];
}

export function strengthOn(part: Part, { strength, textStrength }: Lora): number {
  return part === "unet" ? strength : textStrength;
}

/** What comes before the parameters of each network in the names of its part. */
export const LORA_PREFIXES: Readonly<Record<LoraNetwork, string>> = {
  unet: "",
  text_encoder: "1.",
  text_encoder_2: "2.",
};

/**
 * Matches an adapter file with a model.
 * @param whole reads its tensors; otherwise their places are given.
 * @param version of the file.
 * @throws one sentence when it does not fit.
 */
export async function loadLora(
  lora: Lora,
  { unet }: Pick<Components, "unet">,
  shapes: PartShapes,
  { whole = false, version = "" } = {},
): Promise<LoadedLora> {
  await using file = await SafetensorsFile.open(lora.path);
  const below = (prefix: string): LoraTarget => ({ parameters: strip(shapes.text, prefix) });
  const names = unetTable(unet);
  const modules = [...shapes.unet.keys()].map((name) => name.replace(/\.\w+$/, ""));
  const aliases = new Map(modules.map((at) => [names.toTheirs(at) ?? at, at]));
  const targets = {
    unet: { parameters: shapes.unet, aliases },
    text_encoder: below(LORA_PREFIXES.text_encoder),
    text_encoder_2: below(LORA_PREFIXES.text_encoder_2),
  };
  const { deltas, ignored } = await readLora(file, targets, lora.config);
  const found = { text: new Map<string, Delta>(), unet: new Map<string, Delta>() };
  for (const [network, changes] of deltas)
    for (const [name, delta] of changes)
      found[network === "unet" ? "unet" : "text"].set(
        LORA_PREFIXES[network] + name,
        whole ? await wholeDelta(file, delta) : delta,
      );
  const warnings =
    ignored.length > 0
      ? [`${lora.name} has ${ignored.length} keys without use here, such as ${ignored[0]}`]
      : [];
  return { ...lora, version, deltas: found, warnings };
}

function strip(shapes: ReadonlyMap<string, readonly number[]>, prefix: string): LoraTarget["parameters"] {
  const own = [...shapes].filter(([name]) => name.startsWith(prefix));
  return new Map(own.map(([name, shape]) => [name.slice(prefix.length), shape]));
}

async function wholeDelta(file: SafetensorsFile, delta: Delta): Promise<Delta> {
  const read = async (t: Factor) => toFloat32("data" in t ? t : await file.load(t));
  const factors: Record<string, Factor> = {};
  for (const [name, factor] of Object.entries(delta.factors)) factors[name] = await read(factor);
  return { ...delta, factors, magnitude: delta.magnitude && (await read(delta.magnitude)) };
}

/** Adds the factors of adapters to the weights of a part. */
export function placeFactors(placed: PlacedWeights, part: Part, loras: readonly LoadedLora[]): void {
  for (const [i, { path, deltas }] of loras.entries()) {
    const factors = [...deltas[part]].flatMap(([name, { factors, magnitude }]) =>
      Object.entries({ ...factors, ...(magnitude && { magnitude }) }).map(
        ([factor, t]) => [fixedName(name, i, factor), t] as const,
      ),
    );
    if (factors.length > 0) placed.add(path, new Map(factors));
  }
}

/** What adapters whose factors are among the weights change in a parameter. */
export function fixedChanges(part: Part, loras: readonly LoadedLora[], name: string): Change[] {
  return loras.flatMap((lora, i) => {
    const delta = lora.deltas[part].get(name);
    if (!delta) return [];
    const { kind, scale, factors, magnitude } = delta;
    const leaf = (factor: string, { shape }: Pick<Factor, "shape">) =>
      parameter(fixedName(name, i, factor), shape, GIVEN);
    return {
      kind,
      scale,
      strength: strengthOn(part, lora),
      factor: (factor) => leaf(factor, factors[factor]),
      magnitude: magnitude && leaf("magnitude", magnitude),
    };
  });
}

function fixedName(parameter: string, i: number, factor: string): string {
  return `${parameter}.lora${i}_${factor}`;
}

/** Of parameters whose values lie in files. */
export const GIVEN: ParameterInfo["init"] = { kind: "constant", value: 0 };
