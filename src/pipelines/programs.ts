/** @file The programs of a pipeline: text encoders, UNet with its adapters, VAE decoder. B batch, h w latent. */

import { type Graph, graph, input, parametersOf, symbol } from "../graph/index.ts";
import { clipText, clipTextWithProjection, unet, vaeDecode } from "../models/index.ts";
import { loraScope, rootScope, type Scope } from "../nn/index.ts";
import { concat, gather } from "../ops/index.ts";
import { type CompileOptions, compile, type Program } from "../runtime/index.ts";
import { readLora, SafetensorsFile, unetTable } from "../weights/index.ts";
import type { Components } from "./components.ts";
import { weightsOf } from "./folder.ts";

type Run = Pick<CompileOptions, "device" | "threads">;

/**
 * Token ids and end positions of both tokenizers → `hidden` [B,T,D] of both encoders, and `pooled` [B,P]. `layer` and
 * `layer_2` [1] say whose output `hidden` is: 0 that of the embeddings, and so on to the last layer but one.
 */
export async function compileText(model: Components, run: Run): Promise<Program> {
  const { text, tokenizers } = model;
  const B = symbol("B");
  const tokens = (name: string, i: number) => input(name, "int64", [B, tokenizers[i].maxLength]);
  const root = rootScope();
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
  const g = graph({ hidden: concat(hidden, 2), pooled: second.textEmbeds, pooled_1: first.pooled });
  const sources = { "1.": model.weights("text_encoder"), "2.": model.weights("text_encoder_2") };
  return compile(g, { ...(await weightsOf(g, sources)), ...run });
}

/** `sample` [B,4,h,w], `timestep` [B], `hidden`, `pooled` and `time_ids` [B,6] → `prediction` [B,4,h,w]. */
export async function compileUNet(model: Components, run: Run): Promise<Program> {
  const build = (scope: Scope) => unetGraph(model, scope);
  const plain = build(rootScope());
  const placed = await weightsOf(plain, { "": model.weights("unet") });
  const shapes = adaptable(plain);
  const names = unetTable(model.unet);
  const aliases = new Map([...shapes.keys()].map((at) => [names.toTheirs(at) ?? at, at]));
  let scope = rootScope();
  for (const [i, { path, strength }] of model.loras.entries()) {
    await using file = await SafetensorsFile.open(path);
    const modules = await readLora(file, shapes, aliases);
    const name = `lora${i}`;
    scope = loraScope(scope, {
      name,
      rank: (at) => modules.get(at)?.rank,
      scale: (at) => (strength * modules.get(at)!.alpha) / modules.get(at)!.rank,
    });
    const tensors = [...modules].flatMap(([at, { down, up }]) => [
      [`${at}.${name}_down.weight`, down] as const,
      [`${at}.${name}_up.weight`, up] as const,
    ]);
    await placed.add(path, new Map(tensors));
  }
  return compile(model.loras.length > 0 ? build(scope) : plain, { ...placed, ...run });
}

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

/** Weight shapes of the linear and convolution layers of a graph, by path. */
function adaptable(g: Graph): Map<string, readonly number[]> {
  const matrices = parametersOf(g).filter(({ name, shape }) => name.endsWith(".weight") && shape.length > 1);
  return new Map(matrices.map(({ name, shape }) => [name.slice(0, -".weight".length), shape]));
}

/** Keys of a VAE that decoding leaves alone. */
const ENCODER = /^(encoder|quant_conv)\./;

/** `latents` [B,4,h,w], not scaled → `pictures` [B,3,H,W]. */
export async function compileVae(model: Components, run: Run): Promise<Program> {
  const [B, H, W] = ["B", "H", "W"].map(symbol);
  const latents = input("latents", "float32", [B, model.vae.latent_channels, H, W]);
  const g = graph({ pictures: vaeDecode(rootScope(), model.vae, latents) });
  return compile(g, { ...(await weightsOf(g, { "": model.weights("vae") }, ENCODER)), ...run });
}
