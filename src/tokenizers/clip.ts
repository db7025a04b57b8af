/** @file CLIP's tokenizer: lower-cased byte-pair encoding with end-of-word marks (Sennrich et al. 2016). */

import { type HostTensor, ints } from "../tensor/index.ts";

const END_OF_WORD = "</w>";
const START = "<|startoftext|>";
const END = "<|endoftext|>";
const PATTERN = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/giu;

/** Printable stand-ins for the 256 bytes, as GPT-2 maps them. */
const BYTES: readonly string[] = (() => {
  const printable = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
})();
/** The order in which CLIP's vocabulary lists them: printable bytes first. */
const BYTE_ORDER = [...BYTES].sort((a, b) => a.charCodeAt(0) - b.charCodeAt(0));

const utf8 = new TextEncoder();

/** Ideographs that stand alone, as in BERT's tokenizer. */
const IDEOGRAPH =
  /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;

/** Cleans and splits as transformers does where ftfy is not installed. */
function words(text: string): string[] {
  const clean = text
    .replace(/\ufffd|(?![\t\n\r])\p{C}/gu, "")
    .replace(IDEOGRAPH, " $& ")
    .normalize("NFC")
    .toLowerCase();
  return clean.match(PATTERN) ?? [];
}

function symbols(word: string): string[] {
  const parts = Array.from(utf8.encode(word), (b) => BYTES[b]);
  parts[parts.length - 1] += END_OF_WORD;
  return parts;
}

export interface TokenizerFiles {
  /** vocab.json: token → id. */
  vocab: Readonly<Record<string, number>>;
  /** Lines of merges.txt without the version line: "a b". */
  merges: readonly string[];
  /** Tokens a text is cut or padded to. Default 77. */
  maxLength?: number;
  /**
   * Padding token; CLIP-L pads with the end token, OpenCLIP with "!". Default the end token. Where it occurs in a
   * text it is a token of its own, as in transformers.
   */
  pad?: string;
}

export class ClipTokenizer {
  readonly maxLength: number;
  readonly start: number;
  readonly end: number;
  /** Tokens of text in a row. */
  readonly capacity: number;
  /** The token of a comma, where there is one. */
  readonly comma: number | undefined;
  private readonly pad: number;
  private readonly specials: RegExp;
  private readonly vocab: ReadonlyMap<string, number>;
  private readonly ranks: ReadonlyMap<string, number>;
  private readonly cache = new Map<string, number[]>();

  constructor({ vocab, merges, maxLength = 77, pad = END }: TokenizerFiles) {
    this.vocab = new Map(Object.entries(vocab));
    this.ranks = new Map(merges.map((m, i) => [m, i]));
    if (!Number.isInteger(maxLength) || maxLength < 3)
      throw new Error(`the tokenizer's maximum length is ${maxLength}; accepted are whole numbers from 3`);
    this.maxLength = maxLength;
    const special = (token: string) => {
      const id = this.vocab.get(token);
      if (id === undefined) throw new Error(`the tokenizer's vocabulary has no ${token}`);
      return id;
    };
    this.start = special(START);
    this.end = special(END);
    this.pad = special(pad);
    this.capacity = maxLength - 2;
    this.comma = this.vocab.get(`,${END_OF_WORD}`);
    const escaped = [START, END, pad].map((token) => token.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
    this.specials = new RegExp(`(${escaped.join("|")})`);
  }

  /** Token ids without start and end. */
  encode(text: string): number[] {
    return text
      .split(this.specials) // special tokens at odd places
      .flatMap((part, i) => (i % 2 ? this.id(part) : words(part).flatMap((word) => this.encodeWord(word))));
  }

  private id(token: string): number {
    return this.vocab.get(token) ?? this.end; // unknown is the end token
  }

  private encodeWord(word: string): number[] {
    if (word === START) return [this.start];
    if (word === END) return [this.end];
    let ids = this.cache.get(word);
    if (!ids) {
      ids = this.merge(symbols(word)).map((token) => this.id(token));
      if (this.cache.size < 50_000) this.cache.set(word, ids);
    }
    return ids;
  }

  private merge(parts: string[]): string[] {
    while (parts.length > 1) {
      let best = Number.POSITIVE_INFINITY;
      for (let i = 0; i + 1 < parts.length; i++)
        best = Math.min(best, this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Number.POSITIVE_INFINITY);
      if (best === Number.POSITIVE_INFINITY) break;
      const joined: string[] = [];
      for (let i = 0; i < parts.length; i++)
        if (i + 1 < parts.length && this.ranks.get(`${parts[i]} ${parts[i + 1]}`) === best)
          joined.push(parts[i] + parts[++i]);
        else joined.push(parts[i]);
      parts = joined;
    }
    return parts;
  }

  /** A row of `maxLength` tokens: start, text (cut when too long), end, padding. */
  row(tokens: readonly number[]): number[] {
    const some = tokens.slice(0, this.capacity);
    return [this.start, ...some, this.end, ...new Array(this.capacity - some.length).fill(this.pad)];
  }

  /** Rows as ids int64 [B,T], and the position of each first end token, int64 [B]. */
  batch(rows: readonly (readonly number[])[]): { ids: HostTensor; end: HostTensor } {
    const ends = rows.map((row) => row.indexOf(this.end));
    return { ids: ints([rows.length, this.maxLength], rows.flat()), end: ints([rows.length], ends) };
  }

  /** Texts as rows of ids int64 [B,T], and the position of each first end token, int64 [B]. */
  encodeBatch(texts: readonly string[]): { ids: HostTensor; end: HostTensor } {
    return this.batch(texts.map((text) => this.row(this.encode(text))));
  }
}

/**
 * Learns merges from a corpus until the vocabulary has `size` entries, in CLIP's layout: bytes, bytes that end a
 * word, merges, start and end tokens. Ties go to the pair that sorts first, so the result is deterministic.
 */
export function trainBpe(
  corpus: Iterable<string>,
  size: number,
): Required<Pick<TokenizerFiles, "vocab" | "merges">> {
  const counts = new Map<string, number>();
  for (const text of corpus) for (const word of words(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
  const entries = [...counts].map(([word, count]) => ({ parts: symbols(word), count }));
  const merges: string[] = [];
  while (512 + merges.length + 2 < size) {
    const pairs = new Map<string, number>();
    for (const { parts, count } of entries)
      for (let i = 0; i + 1 < parts.length; i++) {
        const pair = `${parts[i]} ${parts[i + 1]}`;
        pairs.set(pair, (pairs.get(pair) ?? 0) + count);
      }
    let best: [string, number] = ["", 1];
    for (const [pair, n] of pairs)
      if (n > best[1] || (n === best[1] && n > 1 && pair < best[0])) best = [pair, n];
    if (best[1] < 2) break;
    merges.push(best[0]);
    const [a, b] = best[0].split(" ");
    for (const entry of entries) {
      const { parts } = entry;
      const joined: string[] = [];
      for (let i = 0; i < parts.length; i++)
        if (parts[i] === a && parts[i + 1] === b) joined.push(parts[i] + parts[++i]);
        else joined.push(parts[i]);
      entry.parts = joined;
    }
  }
  const tokens = [
    ...BYTE_ORDER,
    ...BYTE_ORDER.map((b) => b + END_OF_WORD),
    ...merges.map((m) => m.replace(" ", "")),
    START,
    END,
  ];
  return { vocab: Object.fromEntries(tokens.map((t, i) => [t, i])), merges };
}
