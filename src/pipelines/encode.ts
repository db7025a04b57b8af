/**
 * @file Prompts → what the UNet reads of them. n chunks, T tokens of each, D text width: of both encoders together, or
 * of one where it says so.
 */

import { type FloatTensor, floats, type HostTensor, ints } from "../tensor/index.ts";
import { type Chunk, chunkPrompt, type PromptWeighting } from "../tokenizers/index.ts";
import type { Components } from "./components.ts";
import type { LazyProgram } from "./layout.ts";
import type { Prompt } from "./prompts.ts";

export interface EncodeOptions {
  /**
   * How weights in prompts are read, and what becomes of prompts that are longer than the encoders read: "comfy"
   * (default) and "a1111" go on in further chunks, "none" cuts them.
   */
  promptWeighting?: PromptWeighting;
  /** Layers of the text encoders that are left out besides the last, as in diffusers; default 0. */
  clipSkip?: number;
}

/** The one that changes nothing where nothing is written, and never divides. */
export const DEFAULT_WEIGHTING: PromptWeighting = "comfy";

type Encoders = Pick<Components, "text" | "tokenizers">;

/** A chunk for each encoder. */
type Row = readonly Chunk[];

/**
 * One encoding for each prompt, chunks one after the other: hidden [1,n·T,D], `pooled` that of the first chunk.
 * @throws when so many layers cannot be skipped.
 */
export async function encodePrompts(
  program: LazyProgram,
  encoders: Encoders,
  prompts: readonly string[],
  { promptWeighting = DEFAULT_WEIGHTING, clipSkip = 0 }: EncodeOptions,
): Promise<Prompt[]> {
  const layers = layersAfter(encoders, clipSkip);
  const rowsOf = (prompt: string): Row[] => {
    const towers = encoders.tokenizers.map((t) => chunkPrompt(t, prompt, promptWeighting).chunks);
    const count = Math.max(...towers.map((chunks) => chunks.length)); // two vocabularies may differ
    return Array.from({ length: count }, (_, k) => towers.map((chunks, i) => chunks[k] ?? empty[i]));
  };
  const empty: Row = encoders.tokenizers.map((t) => chunkPrompt(t, "", "none").chunks[0]);
  const groups = prompts.map(rowsOf);
  const rows = groups.flat();
  const needsEmpty = promptWeighting === "comfy" && rows.some((row) => row.some(isWeighted));
  const out = await program.run(feedsOf(encoders, [...rows, ...(needsEmpty ? [empty] : [])], layers));
  const { hidden, pooled } = out as Record<"hidden" | "pooled", FloatTensor>;
  const [, T, D] = hidden.shape;
  const P = pooled.shape[1];

  const width = encoders.text[0].hidden_size;
  const columns = [
    { D, from: 0, to: width },
    { D, from: width, to: D },
  ];
  const at = (i: number): Float32Array => hidden.data.subarray(i * T * D, (i + 1) * T * D);
  for (const [i, row] of rows.entries())
    for (const [tower, chunk] of row.entries())
      if (!isWeighted(chunk)) continue;
      else if (needsEmpty) interpolate(at(i), chunk.weights, columns[tower], at(rows.length));
      else multiply(at(i), chunk.weights, columns[tower]);

  let end = 0;
  return groups.map(({ length }) => {
    const start = end;
    end += length;
    return {
      hidden: floats([1, length * T, D], hidden.data.slice(start * T * D, end * T * D)),
      pooled: floats([1, P], pooled.data.slice(start * P, (start + 1) * P)),
    };
  });
}

/** What the encoders take for the first chunk of some prompts. */
export function firstChunks(encoders: Encoders, prompts: readonly string[]): Record<string, HostTensor> {
  const rows = prompts.map((prompt) =>
    encoders.tokenizers.map((t) => chunkPrompt(t, prompt, "none").chunks[0]),
  );
  return feedsOf(encoders, rows, layersAfter(encoders, 0));
}

function feedsOf({ tokenizers }: Encoders, rows: readonly Row[], layers: readonly number[]) {
  const [first, second] = tokenizers.map((t, i) => t.batch(rows.map((row) => row[i].ids)));
  return {
    ids: first.ids,
    end: first.end,
    layer: ints([1], [layers[0]]),
    ids_2: second.ids,
    end_2: second.end,
    layer_2: ints([1], [layers[1]]),
  };
}

/** The most that can be skipped: what is left are the embeddings. */
export function mostClipSkip({ text }: Pick<Components, "text">): number {
  return Math.min(...text.map((config) => config.num_hidden_layers)) - 1;
}

/** The layer of each encoder that is read; 0 is the embeddings, and without a skip it is the last but one. */
function layersAfter({ text }: Encoders, clipSkip: number): number[] {
  const most = mostClipSkip({ text });
  if (!Number.isInteger(clipSkip) || clipSkip < 0 || clipSkip > most)
    throw new Error(
      `clipSkip is ${clipSkip}; with these text encoders it is a whole number from 0 to ${most}`,
    );
  return text.map((config) => config.num_hidden_layers - 1 - clipSkip);
}

function isWeighted({ weights }: Chunk): boolean {
  return weights.some((weight) => weight !== 1);
}

/** Those of one encoder among all D. */
interface Columns {
  D: number;
  from: number;
  to: number;
}

/** ComfyUI: z ← (z − z₀)·w + z₀, with z₀ the encoding of an empty prompt at the same place. */
function interpolate(
  z: Float32Array,
  weights: readonly number[],
  { D, from, to }: Columns,
  empty: Float32Array,
): void {
  for (const [t, weight] of weights.entries())
    if (weight !== 1)
      for (let i = t * D + from; i < t * D + to; i++) z[i] = (z[i] - empty[i]) * weight + empty[i];
}

/**
 * stable-diffusion-webui: z ← w·z, then all of z times what gives it the mean back that it had. Where that is near zero,
 * nothing keeps the factor near one.
 */
function multiply(z: Float32Array, weights: readonly number[], { D, from, to }: Columns): void {
  let before = 0;
  let after = 0;
  for (const [t, weight] of weights.entries())
    for (let i = t * D + from; i < t * D + to; i++) {
      before += z[i];
      z[i] *= weight;
      after += z[i];
    }
  const factor = before / after;
  if (!Number.isFinite(factor)) return;
  for (let t = 0; t < weights.length; t++) for (let i = t * D + from; i < t * D + to; i++) z[i] *= factor;
}
