/** @file How much the noise error of each step counts. */

import { describe, expect, test } from "vitest";
import { biasedPlace, noiseErrorWeight } from "../../src/train/unet.ts";

describe("noiseErrorWeight", () => {
  test("without a bound, noise counts evenly", () => {
    for (const snr of [0.005, 1, 300]) expect(noiseErrorWeight(snr, 0, "snr")).toBe(1);
  });

  test("the bound keeps clean steps from counting more than γ in terms of the clean estimate", () => {
    expect(noiseErrorWeight(50, 5, "snr") * 50).toBeCloseTo(5, 12);
    expect(noiseErrorWeight(2, 5, "snr")).toBe(1);
  });

  test("snr+1 is the weight that predicting velocity has", () => {
    for (const snr of [0.005, 0.5, 3]) {
      // v = √ᾱ·ε − √(1−ᾱ)·x₀; at fixed x_t an error δ of ε is one of v of δ/√ᾱ
      const alphaCumprod = snr / (1 + snr);
      expect(noiseErrorWeight(snr, 0, "snr+1")).toBeCloseTo(1 / alphaCumprod, 9);
    }
    expect(noiseErrorWeight(50, 5, "snr+1") * 50).toBeCloseTo(6, 12);
  });
});

describe("biasedPlace", () => {
  const places = (bias: Parameters<typeof biasedPlace>[1]) =>
    Array.from({ length: 10_000 }, (_, i) => biasedPlace((i + 0.5) / 10_000, bias));
  const share = (list: readonly number[], from: number, to: number) =>
    list.filter((x) => x >= from && x < to).length / list.length;

  test.each([
    ["later", 0.8, 1],
    ["earlier", 0, 0.2],
  ] as const)("%s: the portion is drawn so many times as often, evenly", (strategy, from, to) => {
    const drawn = places({ strategy, multiplier: 8, portion: 0.2 });
    expect(share(drawn, from, to)).toBeCloseTo((0.2 * 8) / (0.2 * 8 + 0.8), 3);
    expect(share(drawn, from, from + 0.1)).toBeCloseTo(share(drawn, from + 0.1, to), 3);
    expect(share(drawn, 0.3, 0.5)).toBeCloseTo(share(drawn, 0.5, 0.7), 3);
    expect(share(drawn, 0, 1)).toBe(1);
    expect(drawn).toEqual([...drawn].sort((a, b) => a - b));
  });

  test("none leaves the place as it is", () => {
    expect(biasedPlace(0.3, { strategy: "none", multiplier: 8, portion: 0.2 })).toBe(0.3);
  });
});
