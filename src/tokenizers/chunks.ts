/** @file A prompt as chunks of tokens with weights: encoders read no more than a chunk at a time. T tokens. */

import type { ClipTokenizer } from "./clip.ts";
import { parseEmphasis, parseTokenWeights } from "./emphasis.ts";

/**
 * How weights in a prompt are read: not at all, as stable-diffusion-webui does, or as ComfyUI does. With "none" what
 * is beyond the first chunk is lost, as in diffusers.
 */
export const PROMPT_WEIGHTINGS = ["none", "a1111", "comfy"] as const;
export type PromptWeighting = (typeof PROMPT_WEIGHTINGS)[number];

/** Chunks of a prompt that are read. */
export const MOST_CHUNKS = 32;
/** Tokens that a comma may stand before the end of a chunk for the chunk to end there. */
const BACKTRACK = 20;
/** Texts of so many tokens may be parted by the end of a chunk in ComfyUI's way. */
const LONG = 8;

export interface Chunk {
  /** Start, text, end, padding: [T]. */
  ids: readonly number[];
  /** Of each of them, [T]. */
  weights: readonly number[];
}

interface Token {
  id: number;
  weight: number;
}

/** @returns the chunks, at least one, and whether some of the prompt is not in them. */
export function chunkPrompt(
  tokenizer: ClipTokenizer,
  prompt: string,
  weighting: PromptWeighting,
): { chunks: Chunk[]; lost: boolean } {
  if (weighting === "none") {
    const tokens = tokenizer.encode(prompt).map((id) => ({ id, weight: 1 }));
    return { chunks: [chunkOf(tokenizer, tokens)], lost: tokens.length > tokenizer.capacity };
  }
  const filled = (weighting === "a1111" ? fillToComma : fillByText)(tokenizer, prompt);
  const chunks = filled.slice(0, MOST_CHUNKS).map((tokens) => chunkOf(tokenizer, tokens));
  return { chunks, lost: filled.length > MOST_CHUNKS };
}

function chunkOf(tokenizer: ClipTokenizer, tokens: readonly Token[]): Chunk {
  const ids = tokenizer.row(tokens.map(({ id }) => id));
  return { ids, weights: ids.map((_, i) => tokens[i - 1]?.weight ?? 1) };
}

/**
 * stable-diffusion-webui: `BREAK` begins a chunk. One that is full ends after its last comma, where that is among its
 * last tokens.
 */
function fillToComma(tokenizer: ClipTokenizer, prompt: string): Token[][] {
  const { capacity, comma } = tokenizer;
  const chunks: Token[][] = [];
  let chunk: Token[] = [];
  let lastComma = Number.NEGATIVE_INFINITY;
  const next = (rest: Token[] = []): void => {
    chunks.push(chunk);
    chunk = rest;
    lastComma = Number.NEGATIVE_INFINITY;
  };
  for (const [i, part] of parseEmphasis(prompt).entries()) {
    if (i > 0) next();
    for (const { text, weight } of part)
      for (const id of tokenizer.encode(text)) {
        if (id === comma) lastComma = chunk.length;
        else if (chunk.length === capacity && capacity - lastComma <= BACKTRACK)
          next(chunk.splice(lastComma + 1));
        if (chunk.length === capacity) next();
        chunk.push({ id, weight });
      }
  }
  if (chunk.length > 0 || chunks.length === 0) next();
  return chunks;
}

/** ComfyUI: a short text of one weight stays whole, longer ones fill each chunk. */
function fillByText(tokenizer: ClipTokenizer, prompt: string): Token[][] {
  const { capacity } = tokenizer;
  const chunks: Token[][] = [[]];
  for (const { text, weight } of parseTokenWeights(prompt)) {
    const tokens = tokenizer.encode(text).map((id) => ({ id, weight }));
    const stays = tokens.length < LONG && tokens.length <= capacity;
    if (stays && chunks[chunks.length - 1].length + tokens.length > capacity) chunks.push([]);
    for (const token of tokens) {
      if (chunks[chunks.length - 1].length === capacity) chunks.push([]);
      chunks[chunks.length - 1].push(token);
    }
  }
  return chunks;
}
