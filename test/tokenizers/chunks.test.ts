import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ClipTokenizer, chunkPrompt, PROMPT_WEIGHTINGS, trainBpe } from "../../src/tokenizers/index.ts";

/** Ten tokens of text in a row; a letter with a space after it is a token. */
const tokenizer = new ClipTokenizer({ ...trainBpe([], 514), maxLength: 12 });

/** The text of each chunk, as letters, and "|" for padding. */
function texts(prompt: string, weighting: (typeof PROMPT_WEIGHTINGS)[number]): string[] {
  const letters = new Map([..."abcdefghijklmnopqrstuvwxyz,."].map((c) => [tokenizer.encode(c)[0], c]));
  return chunkPrompt(tokenizer, prompt, weighting).chunks.map(({ ids }) =>
    ids
      .slice(1)
      .map((id) => letters.get(id) ?? "|")
      .join("")
      .replace(/\|+$/, ""),
  );
}

const spaced = (letters: string): string => [...letters].join(" ");

test("none: what is beyond the first chunk is lost", () => {
  const prompt = spaced("abcdefghijkl");
  expect(texts(prompt, "none")).toEqual(["abcdefghij"]);
  expect(chunkPrompt(tokenizer, prompt, "none").lost).toBe(true);
  expect(chunkPrompt(tokenizer, spaced("abcdefghij"), "none").lost).toBe(false);
});

describe("a1111", () => {
  test.each<[string, string[]]>([
    ["", [""]],
    [spaced("abcdefghij"), ["abcdefghij"]],
    [spaced("abcdefghijk"), ["abcdefghij", "k"]],
    [spaced("abc,defghijkl"), ["abc,", "defghijkl"]],
    [spaced("abc,defghi,jkl"), ["abc,defghi", ",jkl"]], // the comma itself does not fit
    [spaced("abcdefghi,jkl"), ["abcdefghi,", "jkl"]],
    [spaced("abc,defghijklmnopqrst"), ["abc,", "defghijklm", "nopqrst"]], // a comma is looked back to once
    ["a BREAK b", ["a", "b"]],
    ["BREAK a BREAK BREAK b BREAK", ["", "a", "", "b"]],
  ])("%s", (prompt, expected) => {
    expect(texts(prompt, "a1111")).toEqual(expected);
  });
});

describe("comfy", () => {
  test.each<[string, string[]]>([
    ["", [""]],
    [spaced("abc,defghijkl"), ["abc,defghi", "jkl"]],
    [`${spaced("abcdefg")} (${spaced("hijkl")})`, ["abcdefg", "hijkl"]], // short: stays whole
    [`${spaced("abcdefg")} (${spaced("hijklmno")})`, ["abcdefghij", "klmno"]],
  ])("%s", (prompt, expected) => {
    expect(texts(prompt, "comfy")).toEqual(expected);
  });
});

test("start, end and padding have weight 1", () => {
  const { chunks } = chunkPrompt(tokenizer, "a (b:2)", "comfy");
  expect(chunks[0].weights).toEqual([1, 1, 2, ...new Array(9).fill(1)]);
  expect(chunks[0].ids.slice(3)).toEqual(new Array(9).fill(tokenizer.end));
});

test("32 chunks are read", () => {
  const prompt = "a ".repeat(321);
  const { chunks, lost } = chunkPrompt(tokenizer, prompt, "comfy");
  expect([chunks.length, lost]).toEqual([32, true]);
  expect(chunkPrompt(tokenizer, prompt.slice(2), "comfy").lost).toBe(false);
});

test("any text is chunks of the same form, whatever the tokenizer's length", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "binary", maxLength: 300 }),
      fc.constantFrom(...PROMPT_WEIGHTINGS),
      fc.integer({ min: 3, max: 20 }),
      (prompt, weighting, maxLength) => {
        const short = new ClipTokenizer({ ...trainBpe([], 514), maxLength });
        const { chunks } = chunkPrompt(short, prompt, weighting);
        expect(chunks.length).toBeGreaterThan(0);
        for (const { ids, weights } of chunks) {
          expect([ids.length, weights.length, ids[0]]).toEqual([maxLength, maxLength, short.start]);
          expect(ids).toContain(short.end);
        }
      },
    ),
    { numRuns: 50 },
  );
});

test("a tokenizer that leaves no room for text is refused", () => {
  for (const maxLength of [2, 1.5, Number.NaN, -1])
    expect(() => new ClipTokenizer({ ...trainBpe([], 514), maxLength })).toThrow(
      /maximum length is .*; accepted are whole numbers from 3/,
    );
});
