import { cpuUsage } from "node:process";
import { describe, expect, test } from "vitest";
import { formatParameters, parseParameters } from "../../src/platform/index.ts";

const fields = {
  Steps: 20,
  Sampler: "Euler",
  "CFG scale": 7.5,
  Seed: 2n ** 64n - 1n,
  Size: "64x64",
  Model: "fewstep-icons",
  Version: "fewstep 0.1.0",
};
const entries = Object.entries(fields).map(([key, value]) => [key, String(value)]);

test("the text is laid out as in stable-diffusion-webui", () => {
  expect(formatParameters("a red apple", "blurry", { ...fields, Extra: undefined })).toBe(
    "a red apple\nNegative prompt: blurry\n" +
      "Steps: 20, Sampler: Euler, CFG scale: 7.5, Seed: 18446744073709551615, Size: 64x64, " +
      "Model: fewstep-icons, Version: fewstep 0.1.0",
  );
});

test.each([
  ["a red apple", ""],
  ["a red apple, noto style: shiny", "blurry, grey"],
  ["two lines\nof prompt", "and\nof negative prompt"],
  ["", ""],
  ["", "only negative"],
  ['says "hello"', ""],
])("prompt %j, negative %j survive", (prompt, negativePrompt) => {
  const parsed = parseParameters(formatParameters(prompt, negativePrompt, fields));
  expect(parsed).toEqual({ prompt, negativePrompt, fields: new Map(entries as [string, string][]) });
});

test.each(['a, b: "c"', "line\nbreak", '"quoted"', "back\\slash, comma", "with: colon", "plain"])(
  "value %j survives",
  (value) => {
    const text = formatParameters("p", "", { Steps: 1, Seed: 2, Model: value, Last: "x" });
    expect(parseParameters(text).fields.get("Model")).toBe(value);
    expect(parseParameters(text).fields.get("Last")).toBe("x");
  },
);

describe("texts of other programs", () => {
  test("quoted lists and a Windows line end", () => {
    const { prompt, negativePrompt, fields } = parseParameters(
      "castle <lora:ink:0.8>\r\nNegative prompt: people,\r\ncars\r\nSteps: 4, Sampler: Euler, " +
        'Schedule type: SGM Uniform, CFG scale: 1, Seed: 7, Lora hashes: "ink: 0a1b, pen: 2c3d", RNG: CPU',
    );
    expect([prompt, negativePrompt]).toEqual(["castle <lora:ink:0.8>", "people,\ncars"]);
    expect(fields.get("Lora hashes")).toBe("ink: 0a1b, pen: 2c3d");
    expect(fields.get("RNG")).toBe("CPU");
  });

  test("a last line with fewer than three pairs is prompt", () => {
    expect(parseParameters("portrait\nmood: calm, light: soft")).toEqual({
      prompt: "portrait\nmood: calm, light: soft",
      negativePrompt: "",
      fields: new Map(),
    });
  });

  test("broken quotes and stray commas lose nothing but themselves", () => {
    const { fields } = parseParameters('p\nSteps: 4,, ?, Model: "half, Seed: 7, __proto__: x');
    expect([...fields]).toEqual([
      ["Steps", "4"],
      ["Model", '"half'],
      ["Seed", "7"],
      ["__proto__", "x"],
    ]);
  });

  test("long hostile lines take linear time", () => {
    for (const part of ["aa ", 'aa:"x,', 'aa:"\\",', ",", "aa:\\"]) {
      const started = cpuUsage();
      parseParameters(part.repeat(20_000));
      const { user } = cpuUsage(started); // microseconds
      expect(user).toBeLessThan(2e6);
    }
  });
});
