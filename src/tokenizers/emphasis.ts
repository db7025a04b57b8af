/**
 * @file Words with weights, as prompts write them. Two grammars; both take any text, in time linear in its length.
 */

/** Text that is read with one weight; 1 is as it is. */
export interface Weighted {
  text: string;
  weight: number;
}

/** Weights are cut to this, either way. */
const HEAVIEST = 1000;
/** Brackets within so many others count no more: 1.1^100 is far beyond the heaviest weight. */
const DEEPEST = 100;
/** What a pair of brackets multiplies with. */
const BRACKET = 1.1;

const cut = (weight: number): number => Math.min(HEAVIEST, Math.max(-HEAVIEST, weight));

/** An escape, a bracket, a weight that closes one, or text up to the next of these. */
const PIECE = /\\[\\()[\]]?|[([]|:\s{0,9}[+-]?[.\d]{1,40}\s{0,9}\)|[)\]]|[^\\()[\]:]+|:/g;
const BREAK = /(?<![\p{L}\p{N}_])BREAK(?![\p{L}\p{N}_])/u;

/**
 * The grammar of stable-diffusion-webui (its `parse_prompt_attention`): (more), [less], (weighed:1.3), brackets within
 * brackets multiply, `\(` is a bracket itself. `BREAK` ends a chunk, here within brackets too.
 * @returns the parts between the breaks, at least one; neighbours of one weight are one text.
 */
export function parseEmphasis(prompt: string): Weighted[][] {
  const pieces: (Weighted & { part: number })[] = [];
  let part = 0;
  const round: number[] = []; // where those that are open began
  const square: number[] = [];
  const add = (text: string): unknown => pieces.push({ text, weight: 1, part });
  const open = (brackets: number[]): unknown =>
    brackets.push(brackets.length < DEEPEST ? pieces.length : Number.POSITIVE_INFINITY);
  const close = (from: number | undefined, factor: number): void => {
    for (let i = from ?? pieces.length; i < pieces.length; i++) pieces[i].weight *= factor;
  };
  for (const [piece] of prompt.matchAll(PIECE)) {
    if (piece.startsWith("\\")) add(piece.slice(1));
    else if (piece === "(") open(round);
    else if (piece === "[") open(square);
    else if (piece === ")" && round.length > 0) close(round.pop(), BRACKET);
    else if (piece === "]" && square.length > 0) close(square.pop(), 1 / BRACKET);
    else if (/^:.+\)$/s.test(piece) && round.length > 0) {
      const weight = Number(piece.slice(1, -1));
      if (Number.isNaN(weight)) add(piece.slice(0, -1)); // such as 1.2.3
      close(round.pop(), Number.isNaN(weight) ? BRACKET : cut(weight));
    } else
      piece.split(BREAK).forEach((text, i, texts) => {
        if (i > 0) part++;
        const head = i > 0 ? text.trimStart() : text;
        add(i + 1 < texts.length ? head.trimEnd() : head);
      });
  }
  for (const from of round) close(from, BRACKET);
  for (const from of square) close(from, 1 / BRACKET);

  const parts: Weighted[][] = Array.from({ length: part + 1 }, () => []);
  for (const { text, weight, part } of pieces) {
    const last = parts[part][parts[part].length - 1];
    if (last?.weight === weight) last.text += text;
    else parts[part].push({ text, weight });
  }
  return parts.map((texts) => texts.map(({ text, weight }) => ({ text, weight: cut(weight) })));
}

/** Stand for escaped brackets; no tokenizer reads these characters. */
const ESCAPED = { "\\(": "\ufdd0", "\\)": "\ufdd1" } as const;
const NUMBER = /^[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?$/i;

/**
 * The grammar of ComfyUI (its `token_weights`): (more) and (weighed:1.3), whose number stands for the brackets around
 * it too; `\(` is a bracket itself. Brackets that do not match are text.
 */
export function parseTokenWeights(prompt: string): Weighted[] {
  const out: Weighted[] = [];
  const hidden = prompt
    .replace(/[\ufdd0\ufdd1]/g, "")
    .replace(/\\[()]/g, (pair) => ESCAPED[pair as keyof typeof ESCAPED]);
  weigh(hidden, 1, 0, out);
  return out;
}

function weigh(text: string, weight: number, depth: number, out: Weighted[]): void {
  for (const part of topLevel(text)) {
    if (depth === DEEPEST || part.length < 2 || !part.startsWith("(") || !part.endsWith(")")) {
      const shown = part.replaceAll("\ufdd0", "(").replaceAll("\ufdd1", ")");
      out.push({ text: shown, weight: cut(weight) });
      continue;
    }
    const inner = part.slice(1, -1);
    const colon = inner.lastIndexOf(":");
    const number = colon > 0 ? inner.slice(colon + 1).trim() : "";
    if (NUMBER.test(number)) weigh(inner.slice(0, colon), cut(Number(number)), depth + 1, out);
    else weigh(inner, weight * BRACKET, depth + 1, out);
  }
}

/** Outermost pairs of brackets, and the text between them. */
function topLevel(text: string): string[] {
  const parts: string[] = [];
  let start = 0;
  let depth = 0; // below 0 after a bracket that closes nothing
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "(") {
      if (depth === 0 && i > start) {
        parts.push(text.slice(start, i));
        start = i;
      }
      depth++;
    } else if (text[i] === ")") {
      depth--;
      if (depth === 0) {
        parts.push(text.slice(start, i + 1));
        start = i + 1;
      }
    }
  }
  if (start < text.length) parts.push(text.slice(start));
  return parts;
}
