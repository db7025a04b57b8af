/** @file Encoded prompts. B batch, T text tokens, D text width. */

import { LRUCache } from "lru-cache";
import { type FloatTensor, floats } from "../tensor/index.ts";

export interface Prompt {
  hidden: FloatTensor; // [B,T,D]
  pooled: FloatTensor; // [B,P]
}

/** Encodes prompts, and only those that it has not seen lately. */
export type PromptCache = (
  prompts: readonly string[],
  encode: (missing: readonly string[]) => Promise<Prompt>,
) => Promise<Prompt>;

/** Keeps the encodings of the last `size` prompts. */
export function promptCacheOf(size: number): PromptCache {
  const known = new LRUCache<string, Prompt>({ max: size });
  return async (prompts, encode) => {
    const found = new Map(prompts.map((prompt) => [prompt, known.get(prompt)]));
    const missing = [...found.keys()].filter((prompt) => !found.get(prompt));
    if (missing.length > 0) {
      const encoded = await encode(missing);
      for (const [i, prompt] of missing.entries()) {
        const one = { hidden: row(encoded.hidden, i), pooled: row(encoded.pooled, i) };
        found.set(prompt, one);
        known.set(prompt, one);
      }
    }
    const rows = prompts.map((prompt) => found.get(prompt) as Prompt);
    return { hidden: stacked(rows.map((r) => r.hidden)), pooled: stacked(rows.map((r) => r.pooled)) };
  };
}

/** Each row `times` times, one after the other. */
export function eachRow({ hidden, pooled }: Prompt, times: number): Prompt {
  const repeat = (t: FloatTensor) => {
    const [rows, ...rest] = t.shape;
    const width = t.data.length / rows;
    const out = floats([rows * times, ...rest]);
    for (let i = 0; i < rows * times; i++)
      out.data.set(
        t.data.subarray(Math.floor(i / times) * width, (Math.floor(i / times) + 1) * width),
        i * width,
      );
    return out;
  };
  return times === 1 ? { hidden, pooled } : { hidden: repeat(hidden), pooled: repeat(pooled) };
}

/** Row i, as a batch of one of its own. */
function row({ shape, data }: FloatTensor, i: number): FloatTensor {
  const width = data.length / shape[0];
  return floats([1, ...shape.slice(1)], data.slice(i * width, (i + 1) * width));
}

/** Batches of one as one batch. */
function stacked(rows: readonly FloatTensor[]): FloatTensor {
  const out = floats([rows.length, ...rows[0].shape.slice(1)]);
  for (const [i, { data }] of rows.entries()) out.data.set(data, i * data.length);
  return out;
}
