/** @file Encoded prompts. B batch, T text tokens, D text width. */

import { LRUCache } from "lru-cache";
import { concatenate, type FloatTensor, floats } from "../tensor/index.ts";

export interface Prompt {
  hidden: FloatTensor; // [B,T,D]
  pooled: FloatTensor; // [B,P]
}

/** Encodes prompts, each as a batch of one, and only those that it has not seen lately. */
export type PromptCache = (
  prompts: readonly string[],
  encode: (missing: readonly string[]) => Promise<readonly Prompt[]>,
  /** Encodings that were made in another way are others. */
  way?: string,
) => Promise<Prompt[]>;

/** Keeps the encodings of the last `size` prompts. */
export function promptCacheOf(size: number): PromptCache {
  const known = new LRUCache<string, Prompt>({ max: size });
  return async (prompts, encode, way = "") => {
    const key = (prompt: string): string => `${way}\n${prompt}`;
    const found = new Map(prompts.map((prompt) => [prompt, known.get(key(prompt))]));
    const missing = [...found.keys()].filter((prompt) => !found.get(prompt));
    if (missing.length > 0)
      for (const [i, one] of (await encode(missing)).entries()) {
        found.set(missing[i], one);
        known.set(key(missing[i]), one);
      }
    return prompts.map((prompt) => found.get(prompt) as Prompt);
  };
}

/** Batches of one as one batch: shorter ones go on with the encoding of an empty prompt, chunk by chunk. */
export async function joinedPrompts(
  prompts: readonly Prompt[],
  encodeEmpty: () => Promise<Prompt>,
): Promise<Prompt> {
  const most = Math.max(...prompts.map(({ hidden }) => hidden.shape[1]));
  const shorter = prompts.some(({ hidden }) => hidden.shape[1] < most);
  const filler = shorter ? (await encodeEmpty()).hidden : undefined;
  const filled = ({ hidden }: Prompt): FloatTensor => {
    if (!filler || hidden.shape[1] === most) return hidden;
    const out = floats([1, most, hidden.shape[2]]);
    for (let at = 0; at < out.data.length; at += filler.data.length) out.data.set(filler.data, at);
    out.data.set(hidden.data);
    return out;
  };
  return { hidden: concatenate(prompts.map(filled)), pooled: concatenate(prompts.map((p) => p.pooled)) };
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
