/** @file Adapters made part of a model's weights for good, as checkpoints with a style or few steps baked in have them. */

import { graph } from "../graph/index.ts";
import { changedScope, rootScope } from "../nn/index.ts";
import { compile } from "../runtime/index.ts";
import { castTensor } from "../tensor/index.ts";
import { type LoraNetwork, type TensorSource, tensorSource } from "../weights/index.ts";
import { fixedChanges, GIVEN, LORA_PREFIXES, type LoadedLora, type Part, placeFactors } from "./adapters.ts";
import { below } from "./checkpoint.ts";
import { type Components, type Loras, readComponents } from "./components.ts";
import { PlacedWeights } from "./folder.ts";
import { LoraLibrary } from "./library.ts";
import { partShapes, partWeights } from "./programs.ts";
import type { WholeModel } from "./whole.ts";

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
  const changed = {
    unet: await changedWeights("unet", model, placed),
    text: await changedWeights("text", model, placed),
  };
  const tensors = { ...whole.tensors };
  for (const [network, prefix] of Object.entries(LORA_PREFIXES) as [LoraNetwork, string][]) {
    const own = below(changed[network === "unet" ? "unet" : "text"], prefix);
    tensors[network] = new Map([...tensors[network], ...own]);
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
