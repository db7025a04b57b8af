/** @file A network with int8 weights: from its cache file, which is made where it is missing, stale or damaged. */

import { type Graph, parametersOf } from "../graph/index.ts";
import { compile } from "../runtime/index.ts";
import type { HostTensor } from "../tensor/index.ts";
import { matchKeys, SafetensorsFile, type TensorEntry } from "../weights/index.ts";
import { openCache, type Unusable, writeCache } from "./cache.ts";
import { type Choices, calibrate, type Feeds, snrOf } from "./calibrate.ts";
import { withInt8 } from "./layers.ts";
import { weightBits } from "./matrix.ts";

/** dB of a layer's output below which it stays float. A choice: no pictures were compared for it. */
const THRESHOLD = 22;
/** Smaller layers are fast and small in float as well. */
export const MINIMUM = 2 ** 16;

/** A network in float, and what it takes to make it int8. */
export interface Int8Request {
  /** What it is called in sentences: "UNet". */
  what: string;
  /** Of the cache file. */
  path: string;
  /** The network as it will run, and with symbols for batch sizes alone. */
  graph: Graph;
  sized: Graph;
  /** Inputs on which layers are measured. */
  samples(): Promise<readonly Feeds[]>;
  /** Files with its weights, and how one is read. */
  sources: readonly string[];
  read(name: string): Promise<HostTensor>;
  /** Default: what the processor multiplies exactly, `MINIMUM`, and 22 dB. */
  choices?: Partial<Choices>;
  /** Gets a sentence on what is done that takes a while. */
  onNotice?(sentence: string): void;
}

export interface Int8Network {
  /** Keys of the layers that are int8, for `withInt8`. */
  layers: ReadonlySet<string>;
  /** What the network runs on. */
  weights: Map<string, TensorEntry>;
}

/** @throws one sentence when the file cannot be written. */
export async function int8Network(request: Int8Request): Promise<Int8Network> {
  const { what, path, graph, sized, onNotice } = request;
  const choices = { minimum: MINIMUM, threshold: THRESHOLD, ...request.choices };
  const key = { path, sources: request.sources, choices: { bits: await weightBits(), ...choices } };
  const { threshold } = key.choices;
  const networkOf = async (snr: ReadonlyMap<string, number>): Promise<Int8Network> => {
    const layers = new Set([...snr].filter(([, db]) => db >= threshold).map(([name]) => name));
    return { layers, weights: await entriesFor(path, withInt8(graph, layers)) };
  };

  const found = await openCache(key);
  const known = "snr" in found ? await networkOf(found.snr).catch(() => undefined) : undefined;
  if (known) return known;
  onNotice?.(noticeOf("reason" in found ? found.reason : "stale", what, path));
  const samples = await request.samples();
  const { snr, result } = await writeCache(key, calibrate(sized, samples, request.read, key.choices));
  const network = await networkOf(snr);
  if (onNotice) {
    const near = await nearness(withInt8(graph, network.layers), network, samples, result);
    const float = snr.size - network.layers.size;
    onNotice(
      `int8 ${what}: ${near.toFixed(1)} dB SNR against float; ${float} of ${snr.size} layers stay float`,
    );
  }
  return network;
}

/** dB of the whole network's outputs. */
async function nearness(
  g: Graph,
  { weights }: Int8Network,
  samples: readonly Feeds[],
  exact: readonly Feeds[],
): Promise<number> {
  await using program = await compile(g, { weights });
  const outputs: Feeds[] = [];
  for (const sample of samples) outputs.push(await program.run(sample));
  return snrOf(exact, outputs);
}

/** Where the parameters of a graph lie in the file. @throws when it has others. */
async function entriesFor(path: string, g: Graph): Promise<Map<string, TensorEntry>> {
  await using file = await SafetensorsFile.open(path);
  const shapes = parametersOf(g).map(({ name, shape }) => [name, shape] as const);
  matchKeys(path, Object.fromEntries(shapes), Object.fromEntries(file.entries));
  return new Map(file.entries);
}

function noticeOf(reason: Unusable["reason"], what: string, path: string): string {
  const made = `int8 weights of the ${what} are made`;
  if (reason === "missing") return `${made} once, in ${path}`;
  const why = reason === "stale" ? "is of other files or settings" : "is damaged";
  return `${made} again: ${path} ${why}`;
}
