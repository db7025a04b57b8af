/** @file Adapters made part of a model's weights for good, as checkpoints with a style or few steps baked in have them. */

import { graph } from "../graph/index.ts";
import { changedScope, rootScope } from "../nn/index.ts";
import { compile } from "../runtime/index.ts";
import { castTensor } from "../tensor/index.ts";
import { type TensorSource, tensorSource } from "../weights/index.ts";
import { fixedChanges, GIVEN, type LoadedLora, type Part, placeFactors } from "./adapters.ts";
import type { Network } from "./base.ts";
import { type Components, type Loras, readComponents } from "./components.ts";
import { PlacedWeights } from "./folder.ts";
import { LoraLibrary } from "./library.ts";
import { partShapes, partWeights } from "./programs.ts";
import type { WholeModel } from "./whole.ts";

/** The networks of each part, and what comes before the names of their parameters there. */
const OF: Readonly<Record<Part, readonly (readonly [Network, string])[]>> = {
  unet: [["unet", ""]],
  text: [
    ["text_encoder", "1."],
    ["text_encoder_2", "2."],
  ],
};

/**
 * A model with adapters in its weights, sampled as they say. Each parameter that they change is computed in float32
 * when it is written, and keeps its precision.
 * @param from where `whole` was read.
 * @throws one sentence when an adapter is missing or does not fit.
 */
export async function withLoras(
  from: string,
  whole: WholeModel,
  loras: Loras,
): Promise<{ merged: WholeModel; warnings: string[] }> {
  const model = await readComponents(from, { loras });
  const library = new LoraLibrary(model);
  const placed = await Promise.all(model.loras.map((lora) => library.place(lora)));
  const tensors: Record<Network, Map<string, TensorSource>> = {
    unet: new Map(whole.tensors.unet),
    text_encoder: new Map(whole.tensors.text_encoder),
    text_encoder_2: new Map(whole.tensors.text_encoder_2),
    vae: new Map(whole.tensors.vae),
  };
  for (const part of ["unet", "text"] as const) {
    const changed = await changedWeights(part, model, placed);
    for (const [network, prefix] of OF[part])
      for (const [name, source] of changed)
        if (name.startsWith(prefix)) tensors[network].set(name.slice(prefix.length), source);
  }
  const settings = { ...whole.settings, ...model.sampling };
  return { merged: { ...whole, tensors, settings }, warnings: placed.flatMap(({ warnings }) => warnings) };
}

/** The parameters of a part that adapters change. */
async function changedWeights(
  part: Part,
  model: Components,
  loras: readonly LoadedLora[],
): Promise<Map<string, TensorSource>> {
  const { weights } = await partWeights(part, model);
  const factors = new PlacedWeights();
  placeFactors(factors, part, loras);
  const found = new Map<string, TensorSource>();
  for (const [name, shape] of partShapes(part, model)) {
    const changes = fixedChanges(part, loras, name);
    if (changes.length === 0) continue;
    const { dtype } = weights.get(name)!;
    const own = [...factors.weights].filter(([factor]) => factor.startsWith(`${name}.`));
    const sum = changedScope(rootScope(), () => changes).param(name, shape, GIVEN);
    const bytes = async function* () {
      const options = { weights: new Map([[name, weights.get(name)!], ...own]) };
      await using program = await compile(graph({ sum }), options);
      const merged = await program.run({});
      yield tensorSource(castTensor(merged.sum, dtype)).bytes() as Uint8Array;
    };
    found.set(name, { dtype, shape, bytes });
  }
  return found;
}
