/** @file How much the noise error of each step counts. */

import { describe, expect, test } from "vitest";
import { noiseErrorWeight } from "../../src/train/unet.ts";

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
