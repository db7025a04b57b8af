/** @file The programs of a pipeline: text encoders, UNet, VAE decoder. B batch, h w latent. */

import { flopsOf, type Graph, graph, hoist, input, parametersOf, symbol } from "../graph/index.ts";
import { clipText, clipTextWithProjection, unet } from "../models/index.ts";
import { type Change, changeBranch, changedScope, rootScope, type Scope } from "../nn/index.ts";
import { concat, gather } from "../ops/index.ts";
import { platform } from "../platform/index.ts";
import { int8Network, weightOfKey, withInt8 } from "../quantize/index.ts";
import { type CompileOptions, compile, compileLoop, type Runnable } from "../runtime/index.ts";
import { readSource, tensorSource } from "../weights/index.ts";
import { fixedChanges, type LoadedLora, type Part, placeFactors } from "./adapters.ts";
import type { Components } from "./components.ts";
import { firstChunks } from "./encode.ts";
import { PlacedWeights, weightsOf } from "./folder.ts";
import { type Layout, layoutChanges } from "./layout.ts";
import {
  int8Path,
  type PrecisionOptions,
  precisionOf,
  SAMPLE_PROMPTS,
  SAMPLE_SIDE,
  unetSamples,
} from "./precision.ts";
import type { Prompt } from "./prompts.ts";

export interface Run extends Pick<CompileOptions, "threads">, PrecisionOptions {
  /** Pictures at a time that threads are chosen for. */
  expectedBatch?: number;
  /** The text encoders' outputs, on which int8 layers of the UNet are measured. */
  encode?(prompts: readonly string[]): Promise<Prompt>;
}

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

/**
 * `sample` [B,4,h,w], `timestep` [B], `hidden`, `pooled` and `time_ids` [B,6] → `prediction` [B,4,h,w].
 * @param side of the latents, with one chunk of text; default any, with any text.
 */
function unetGraph({ unet: config, text, tokenizers }: Components, scope: Scope, side?: number): Graph {
  const B = symbol("B");
  const [H, W] = side === undefined ? [symbol("H"), symbol("W")] : [side, side];
  const T = side === undefined ? symbol("T") : tokenizers[0].maxLength;
  const prediction = unet(scope, config, {
    sample: input("sample", "float32", [B, config.in_channels, H, W]),
    timestep: input("timestep", "float32", [B]),
    encoderHiddenStates: input("hidden", "float32", [B, T, config.cross_attention_dim]),
    textEmbeds: input("pooled", "float32", [B, text[1].projection_dim]),
    timeIds: input("time_ids", "float32", [B, 6]),
  });
  return graph({ prediction });
}

/** The network of a part. */
export const GRAPHS: Readonly<Record<Part, (model: Components, scope: Scope) => Graph>> = {
  text: textGraph,
  unet: unetGraph,
};

/** The UNet in two: what it makes of the prompt alone, keys and values first of all, and what changes from step to step. */
export function stepsOf(unet: Graph): Graph[] {
  return hoist(unet, ["hidden", "pooled", "time_ids"], ["sample", "timestep"]);
}

/** Shapes of a part's parameters by name; those of the text encoders are below `1.` and `2.` */
export function partShapes(part: Part, model: Components): Map<string, readonly number[]> {
  const parameters = parametersOf(GRAPHS[part](model, rootScope()));
  return new Map(parameters.map(({ name, shape }) => [name, shape]));
}

/** The weights of a part, under the names that its graph has. */
export async function partWeights(part: Part, model: Components): Promise<PlacedWeights> {
  const sources: Parameters<typeof weightsOf>[1] =
    part === "unet"
      ? { "": await model.weights("unet") }
      : { "1.": await model.weights("text_encoder"), "2.": await model.weights("text_encoder_2") };
  return weightsOf(GRAPHS[part](model, rootScope()), sources);
}

/**
 * A network with int8 layers and changes. Those of int8 weights are branches beside their layers.
 * @throws for changes of these that are not low-rank.
 */
function int8Graph(
  build: (scope: Scope) => Graph,
  layers: ReadonlySet<string>,
  changes: (name: string) => readonly Change[],
): Graph {
  const int8 = new Set([...layers].map(weightOfKey));
  const g = build(changedScope(rootScope(), (name) => (int8.has(name) ? [] : changes(name))));
  return withInt8(g, layers, ({ weight }, y) => {
    const branches = (int8.has(weight) ? changes(weight) : []).map((change) => {
      if (change.kind === "product" && !change.magnitude) return changeBranch(y, change);
      throw new Error(
        `${weight} is int8, where an adapter can be a plain LoRA only; others need precision fp32`,
      );
    });
    return branches.length > 0 ? branches.reduce((a, b) => a.add(b)) : undefined;
  });
}

/** The part on int8 weights. */
async function int8Part(part: Part, model: Components, run: Run): Promise<Kept> {
  const { weights, paths } = await partWeights(part, model);
  const graph = GRAPHS[part](model, rootScope());
  const side = Math.min(SAMPLE_SIDE, model.unet.sample_size ?? SAMPLE_SIDE);
  const isText = part === "text";
  const sources = [...paths];
  return int8Network({
    what: isText ? "text encoders" : "UNet",
    path: int8Path(model, part, sources),
    graph,
    sized: isText ? graph : unetGraph(model, rootScope(), side),
    samples: async () =>
      isText
        ? [firstChunks(model, SAMPLE_PROMPTS)]
        : unetSamples(model, side, await run.encode!(SAMPLE_PROMPTS)),
    sources,
    read: (name) => readSource(tensorSource(weights.get(name)!)),
    choices: run.choices,
    onNotice: run.onNotice,
  });
}

/** FLOPs up to which a network is small: its operators take some ten microseconds each, too short for many threads. */
const SMALL = 1e9;

/** Threads of a small network at most. */
const SMALL_THREADS = 2;

/** FLOPs of a picture from which on a run takes so long that memory can be the system's between two of them. */
const LARGE = 1e11;

/** On B pictures of the model's own size. */
function flopsOn(g: Graph, { unet, tokenizers }: Components, B: number): number {
  const side = unet.sample_size ?? SAMPLE_SIDE;
  return flopsOf(g, { B, H: side, W: side, T: tokenizers[0].maxLength });
}

/** Whether a network is small on B pictures of the model's own size. */
export function isSmall(g: Graph, model: Components, B = 1): boolean {
  return flopsOn(g, model, B) <= SMALL;
}

/** Whether memory and time of a run count more than what comes with it. */
function isLarge(g: Graph, model: Components): boolean {
  return flopsOn(g, model, 1) >= LARGE;
}

/**
 * Whether a UNet runs in two parts. A small one would lose the time that it wins to more inputs; to a GPU these would
 * travel at every step.
 */
export function isInSteps(g: Graph, model: Components, { device = "cpu" }: PrecisionOptions): boolean {
  return device === "cpu" && isLarge(g, model);
}

/** How a network runs: small ones on few threads, large ones in memory that they give back. */
function howFor(
  g: Graph,
  model: Components,
  { device = "cpu", threads, expectedBatch }: Run,
): CompileOptions {
  const few = device === "cpu" && isSmall(g, model, expectedBatch);
  return {
    device,
    threads: few ? Math.min(threads ?? platform().cores, SMALL_THREADS) : threads,
    arena: !isLarge(g, model),
  };
}

/** Weights of a part, and which layers of it are int8. */
interface Kept extends Pick<PlacedWeights, "weights"> {
  layers?: ReadonlySet<string>;
}

/** Makes the program of a network, as often as it is needed. */
export interface Compiler {
  /** Finds the weights and checks them, and makes those of int8 networks. Nothing is loaded. */
  prepare(): Promise<unknown>;
  /** @param layout of adapters; default none. */
  compile(layout?: Layout): Promise<Runnable>;
}

/**
 * A part with some adapters in its weights for good, and with room for others, which are then inputs. Where weights lie
 * is found once for all its programs.
 */
export function partCompiler(
  part: Part,
  model: Components,
  fixed: readonly LoadedLora[],
  run: Run,
): Compiler {
  const plain = GRAPHS[part](model, rootScope());
  const how = howFor(plain, model, run);
  const isInt8 = precisionOf(part, plain, run) === "int8";
  const prepare = once((): Promise<Kept> => (isInt8 ? int8Part(part, model, run) : partWeights(part, model)));
  const compileWith = async (layout?: Layout): Promise<Runnable> => {
    const { weights, layers } = await prepare();
    const factors = new PlacedWeights();
    placeFactors(factors, part, fixed);
    const changes = (name: string): Change[] => [
      ...fixedChanges(part, fixed, name),
      ...(layout ? layoutChanges(layout, name) : []),
    ];
    const build = (scope: Scope) => GRAPHS[part](model, scope);
    const g = layers ? int8Graph(build, layers, changes) : build(changedScope(rootScope(), changes));
    const options = { weights: new Map([...weights, ...factors.weights]), ...how };
    return part === "unet" && isInSteps(plain, model, run)
      ? compileLoop(stepsOf(g), options)
      : compile(g, options);
  };
  return { prepare, compile: compileWith };
}

/** Keys of a VAE that decoding leaves alone. */
const ENCODER = /^(encoder|quant_conv)\./;

/** `latents` [B,4,h,w], not scaled → `pictures` [B,3,H,W]. */
export function vaeCompiler(model: Components, run: Run): Compiler {
  const g = vaeGraph(model);
  const how = howFor(g, model, run);
  const prepare = once(async () => weightsOf(g, { "": await model.weights("vae") }, ENCODER));
  return { prepare, compile: async () => compile(g, { ...(await prepare()), ...how }) };
}

/** What `f` gave when it first succeeded. */
function once<T>(f: () => Promise<T>): () => Promise<T> {
  let known: { value: T } | undefined;
  return async () => {
    known ??= { value: await f() };
    return known.value;
  };
}

export function vaeGraph({ vae }: Pick<Components, "vae">): Graph {
  const [B, H, W] = ["B", "H", "W"].map(symbol);
  const latents = input("latents", "float32", [B, vae.latentChannels, H, W]);
  return graph({ pictures: vae.decode(rootScope(), latents) });
}
