/** @file Weights in prompts: the examples that the reference implementations document, and what holds for any text. */

import { cpuUsage } from "node:process";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseEmphasis, parseTokenWeights, type Weighted } from "../../src/tokenizers/index.ts";

type Pairs = [text: string, weight: number][];

function pairs(texts: readonly Weighted[]): Pairs {
  return texts.map(({ text, weight }) => [text, weight]);
}

/** Brackets, colons, numbers and breaks, among letters and any other characters. */
const prompts = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        "(",
        ")",
        "[",
        "]",
        ":",
        "\\",
        ":1.3)",
        ": 1.3\n)",
        ":-2)",
        "(a:",
        ":1.2.3)",
        " BREAK ",
        "BREAK",
        ", ",
      ),
      fc.string({ unit: "binary" }),
      fc.double().map(String),
    ),
  )
  .map((parts) => parts.join(""));

describe("as stable-diffusion-webui", () => {
  test.each<[string, Pairs]>([
    ["normal text", [["normal text", 1]]],
    [
      "an (important) word",
      [
        ["an ", 1],
        ["important", 1.1],
        [" word", 1],
      ],
    ],
    ["(unbalanced", [["unbalanced", 1.1]]],
    [
      "(cat: 1.3 ) dog",
      [
        ["cat", 1.3],
        [" dog", 1],
      ],
    ],
    ["un)balanced]", [["un)balanced]", 1]]],
    [String.raw`\(literal\]`, [["(literal]", 1]]],
    ["(unnecessary)(parens)", [["unnecessaryparens", 1.1]]],
    [
      "(a [b) c]",
      [
        ["a ", 1.1],
        ["b", 1.1 / 1.1],
        [" c", 1 / 1.1],
      ],
    ],
    ["(a:1.2.3)", [["a:1.2.3", 1.1]]],
    ["a:1.2)", [["a:1.2)", 1]]],
    [
      "(a:-1) (b:0)",
      [
        ["a", -1],
        [" ", 1],
        ["b", 0],
      ],
    ],
    ["(a:99999)", [["a", 1000]]],
    ["", []],
    [
      "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
      [
        ["a ", 1],
        ["house", 1.5730000000000004],
        [" ", 1.1],
        ["on", 1],
        [" a ", 1.1],
        ["hill", 0.55],
        [", sun, ", 1.1],
        ["sky", 1.4641000000000006],
        [".", 1.1],
      ],
    ],
  ])("%s", (prompt, expected) => {
    expect(parseEmphasis(prompt).map(pairs)).toEqual([expected]);
  });

  test.each<[string, Pairs[]]>([
    ["a BREAK b", [[["a", 1]], [["b", 1]]]],
    ["BREAK  a BREAK", [[["", 1]], [["a", 1]], [["", 1]]]],
    ["(a BREAK b)", [[["a", 1.1]], [["b", 1.1]]]],
    ["BREAKS ÉBREAK break BREAK_", [[["BREAKS ÉBREAK break BREAK_", 1]]]],
  ])("%s", (prompt, expected) => {
    expect(parseEmphasis(prompt).map(pairs)).toEqual(expected);
  });
});

describe("as ComfyUI", () => {
  test.each<[string, Pairs]>([
    [
      "(foo)(bar)",
      [
        ["foo", 1.1],
        ["bar", 1.1],
      ],
    ],
    ["(foo:2.0)", [["foo", 2]]],
    ["((foo))", [["foo", 1.1 * 1.1]]],
    ["((foo):1.1)", [["foo", 1.1 * 1.1]]],
    ["((foo:1.1))", [["foo", 1.1]]],
    ["((foo:1.0):0.0)", [["foo", 1]]],
    ["(foo: 1e-1 )", [["foo", 0.1]]],
    [
      "(foo:nan) (:2)",
      [
        ["foo:nan", 1.1],
        [" ", 1],
        [":2", 1.1],
      ],
    ],
    ["[foo] BREAK bar", [["[foo] BREAK bar", 1]]],
    [
      String.raw`\(foo\) (bar\))`,
      [
        ["(foo) ", 1],
        ["bar)", 1.1],
      ],
    ],
    ["foo) (bar)", [["foo) (bar)", 1]]],
    ["(foo (bar", [["(foo (bar", 1]]],
    [
      "(foo (bar)",
      [
        ["foo ", 1.1],
        ["(bar", 1.1],
      ],
    ],
    ["", []],
    [
      "foo ((((lol (cat:666) attack:100)))) baz",
      [
        ["foo ", 1],
        ["lol ", 100],
        ["cat", 666],
        [" attack", 100],
        [" baz", 1],
      ],
    ],
    [
      "foo ((((lol (cat:666) attack):100))) baz",
      [
        ["foo ", 1],
        ["lol ", 100 * 1.1],
        ["cat", 666],
        [" attack", 100 * 1.1],
        [" baz", 1],
      ],
    ],
  ])("%s", (prompt, expected) => {
    const found = pairs(parseTokenWeights(prompt));
    expect(found.map(([text]) => text)).toEqual(expected.map(([text]) => text));
    for (const [i, [, weight]] of found.entries()) expect(weight).toBeCloseTo(expected[i][1], 10);
  });
});

describe.each<[string, (prompt: string) => Weighted[]]>([
  ["parseEmphasis", (prompt) => parseEmphasis(prompt).flat()],
  ["parseTokenWeights", parseTokenWeights],
])("%s", (_, parse) => {
  test("any text is read; weights are finite, and positive where no number is written", () => {
    fc.assert(
      fc.property(prompts, (prompt) => {
        const weights = parse(prompt).map(({ weight }) => weight);
        for (const weight of weights) expect(Math.abs(weight)).toBeLessThanOrEqual(1000);
        if (!/\d/.test(prompt)) for (const weight of weights) expect(weight).toBeGreaterThan(0);
      }),
    );
  });

  test("nothing is added to the text, and nothing taken but syntax", () => {
    const bare = (text: string): string => text.replace(/[\\()[\]:.\d+\-e\s\ufdd0\ufdd1]|BREAK/g, "");
    fc.assert(
      fc.property(prompts, (prompt) => {
        const read = parse(prompt).map(({ text }) => text);
        expect(bare(read.join(""))).toBe(bare(prompt));
      }),
    );
  });

  test("text without syntax stays as it is, with weight 1", () => {
    const plain = fc
      .string({ unit: "binary", minLength: 1 })
      .filter((text) => !/[\\()[\]]|BREAK|[\ufdd0\ufdd1]/.test(text));
    fc.assert(
      fc.property(plain, (text) => {
        expect(parse(text)).toEqual([{ text, weight: 1 }]);
      }),
    );
  });

  test("escaped brackets are text", () => {
    const texts = fc.string().filter((text) => !/[\\[\]]|BREAK/.test(text) && text !== "");
    fc.assert(
      fc.property(texts, (text) => {
        const escaped = text.replace(/[()]/g, "\\$&");
        expect(parse(escaped)).toEqual([{ text, weight: 1 }]);
      }),
    );
  });

  test.each([
    ["(", "", ""],
    ["", "", ")"],
    ["(", "a", ")"],
    ["(a", "", ""],
    ["(a ", "b", ":1.2)"],
    ["[a", "", "]"],
    ["(a:", "", ""],
    ["\\(", "", ""],
    [" ", "", ""],
    ["BREAK ", "", ""],
    ["(a:1", "", ""],
    ["1", "", ""],
  ])("hundred thousand characters of %s%s%s", (before, middle, after) => {
    const times = Math.floor(100_000 / Math.max(before.length, after.length));
    const prompt = before.repeat(times) + middle + after.repeat(times);
    const started = cpuUsage();
    parse(prompt);
    const { user } = cpuUsage(started); // microseconds
    expect(user).toBeLessThan(5e6); // quadratic time takes minutes
  });
});
