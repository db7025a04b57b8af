/** @file The programs of a pipeline: text encoders, UNet, VAE decoder. B batch, h w latent. */

import { type Graph, graph, input, parametersOf, symbol } from "../graph/index.ts";
import { clipText, clipTextWithProjection, unet } from "../models/index.ts";
import { changedScope, rootScope, type Scope } from "../nn/index.ts";
import { concat, gather } from "../ops/index.ts";
import { type CompileOptions, compile, type Program } from "../runtime/index.ts";
import { fixedChanges, type LoadedLora, type Part, placeFactors } from "./adapters.ts";
import type { Components } from "./components.ts";
import { type PlacedWeights, weightsOf } from "./folder.ts";
import { type Layout, layoutChanges } from "./layout.ts";

export type Run = Pick<CompileOptions, "device" | "threads">;

/**
 * Token ids and end positions of both tokenizers → `hidden` [B,T,D] of both encoders, and `pooled` [B,P]. `layer` and
 * `layer_2` [1] say whose output `hidden` is: 0 that of the embeddings, and so on to the last layer but one.
 */
function textGraph({ text, tokenizers }: Components, root: Scope): Graph {
  const B = symbol("B");
  const tokens = (name: string, i: number) => input(name, "int64", [B, tokenizers[i].maxLength]);
  const first = clipText(root.at("1"), text[0], { ids: tokens("ids", 0), end: input("end", "int64", [B]) });
  const second = clipTextWithProjection(root.at("2"), text[1], {
    ids: tokens("ids_2", 1),
    end: input("end_2", "int64", [B]),
  });
  const hidden = [first, second].map(({ hiddenStates }, i) => {
    const states = hiddenStates.slice(0, -1).map((state) => state.unsqueeze(0)); // the last one is not used
    return gather(concat(states, 0), input(i ? "layer_2" : "layer", "int64", [1]), 0).squeeze(0);
  });
  // `pooled_1` is not used, but keeps the last layers in the key list that is checked against the file.
  return graph({ hidden: concat(hidden, 2), pooled: second.textEmbeds, pooled_1: first.pooled });
}

/** `sample` [B,4,h,w], `timestep` [B], `hidden`, `pooled` and `time_ids` [B,6] → `prediction` [B,4,h,w]. */
function unetGraph({ unet: config, text }: Components, scope: Scope): Graph {
  const [B, H, W] = ["B", "H", "W"].map(symbol);
  const prediction = unet(scope, config, {
    sample: input("sample", "float32", [B, config.in_channels, H, W]),
    timestep: input("timestep", "float32", [B]),
    encoderHiddenStates: input("hidden", "float32", [B, symbol("T"), config.cross_attention_dim]),
    textEmbeds: input("pooled", "float32", [B, text[1].projection_dim]),
    timeIds: input("time_ids", "float32", [B, 6]),
  });
  return graph({ prediction });
}

const GRAPHS = { text: textGraph, unet: unetGraph } as const;

/** Shapes of a part's parameters by name; those of the text encoders are below `1.` and `2.` */
export function partShapes(part: Part, model: Components): Map<string, readonly number[]> {
  const parameters = parametersOf(GRAPHS[part](model, rootScope()));
  return new Map(parameters.map(({ name, shape }) => [name, shape]));
}

async function partWeights(
  part: Part,
  model: Components,
  fixed: readonly LoadedLora[],
): Promise<PlacedWeights> {
  const sources: Parameters<typeof weightsOf>[1] =
    part === "unet"
      ? { "": await model.weights("unet") }
      : { "1.": await model.weights("text_encoder"), "2.": await model.weights("text_encoder_2") };
  const placed = await weightsOf(GRAPHS[part](model, rootScope()), sources);
  placeFactors(placed, part, fixed);
  return placed;
}

/**
 * Compiles a part with some adapters in its weights for good, and with room for others, which are then inputs. Where
 * weights lie is found once for all its programs.
 */
export function partCompiler(
  part: Part,
  model: Components,
  fixed: readonly LoadedLora[],
  run: Run,
): (layout?: Layout) => Promise<Program> {
  let kept: PlacedWeights | undefined;
  return async (layout) => {
    kept ??= await partWeights(part, model, fixed);
    const scope = changedScope(rootScope(), (name) => [
      ...fixedChanges(part, fixed, name),
      ...(layout ? layoutChanges(layout, name) : []),
    ]);
    return compile(GRAPHS[part](model, scope), { ...kept, ...run });
  };
}

/** Keys of a VAE that decoding leaves alone. */
const ENCODER = /^(encoder|quant_conv)\./;

/** `latents` [B,4,h,w], not scaled → `pictures` [B,3,H,W]. */
export async function compileVae(model: Components, run: Run): Promise<Program> {
  const [B, H, W] = ["B", "H", "W"].map(symbol);
  const latents = input("latents", "float32", [B, model.vae.latentChannels, H, W]);
  const g = graph({ pictures: model.vae.decode(rootScope(), latents) });
  return compile(g, { ...(await weightsOf(g, { "": await model.weights("vae") }, ENCODER)), ...run });
}
