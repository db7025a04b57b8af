import { expect, test } from "vitest";
import {
  collectLora,
  numberFrom,
  parseCorner,
  parseSeed,
  parseSize,
  parseToldSize,
  wholeNumber,
} from "../../src/cli/options.ts";

test.each([
  ["1", 1],
  ["1000", 1000],
])("steps %s", (text, value) => expect(wholeNumber(1, 1000)(text)).toBe(value));

test.each(["0", "1001", "2.5", "-1", "four", "", " ", "1e2", "0x10", "Infinity"])(
  "steps %j are refused",
  (text) => expect(() => wholeNumber(1, 1000)(text)).toThrow("Give a whole number from 1 to 1000."),
);

test("guidance is any number from 0", () => {
  expect(["0", "7.5", "1e1"].map(numberFrom(0))).toEqual([0, 7.5, 10]);
  for (const text of ["-0.1", "NaN", "Infinity", "", "7,5"])
    expect(() => numberFrom(0)(text)).toThrow("Give a number of at least 0.");
});

test("seeds keep all 64 bits", () => {
  expect(parseSeed("0")).toBe(0);
  expect(parseSeed("9007199254740991")).toBe(2 ** 53 - 1);
  expect(parseSeed("9007199254740993")).toBe(9007199254740993n);
  expect(parseSeed("18446744073709551615")).toBe(2n ** 64n - 1n);
  for (const text of ["18446744073709551616", "-1", "1.5", "", "9".repeat(400)])
    expect(() => parseSeed(text)).toThrow("18446744073709551615");
});

test("sizes are square or width x height", () => {
  expect(parseSize("64")).toEqual({ width: 64, height: 64 });
  expect(parseSize("128x96")).toEqual({ width: 128, height: 96 });
  expect(parseSize("128×96")).toEqual({ width: 128, height: 96 });
  for (const text of ["0", "64x", "x64", "64x0", "-64", "64x64x64", "big", "1000000"])
    expect(() => parseSize(text)).toThrow("Give pixels");
});

test("what a model is told: height before width, top before left", () => {
  expect(parseToldSize("128x96")).toEqual([96, 128]);
  expect(parseCorner("16,0")).toEqual([16, 0]);
  for (const text of ["16", "16x0", "-1,0", "1,2,3", "", "a,b"])
    expect(() => parseCorner(text)).toThrow("Give pixels from the top and from the left");
});

test("adapters add up, with their strengths", () => {
  const first = collectLora("a/b.safetensors");
  const second = collectLora("C:\\c.safetensors:-0.5", first);
  expect(collectLora("x:1", second)).toEqual({ "a/b.safetensors": 1, "C:\\c.safetensors": -0.5, x: 1 });
  for (const text of ["a.safetensors:", "a.safetensors:x", "a.safetensors:Infinity"])
    expect(() => collectLora(text)).toThrow("The strength is not a number");
  expect(() => collectLora("a/b.safetensors:0.1", first)).toThrow("This file is given twice.");
});
