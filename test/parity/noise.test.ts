/** @file Noise against torch's CPU generator, bit for bit. */

import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { initialNoise, type NoiseRule } from "../../src/samplers/index.ts";
import { Generator, type HostTensor } from "../../src/tensor/index.ts";
import { goldenJson, goldenTensors } from "./golden.ts";

/** The bytes of a tensor, which also tell −0 from 0. */
const bytes = ({ data }: HostTensor) => Buffer.from(data.buffer, data.byteOffset, data.byteLength);
const digest = (t: HostTensor) => createHash("sha256").update(bytes(t)).digest("hex");

const RULES: NoiseRule[] = ["stream", "per-image"];
const golden = await goldenTensors("noise", "randn", "mixed", ...RULES);
const digests = (await goldenJson("noise")) as Record<NoiseRule | "latents", Record<string, string>>;

test.each(Object.entries(golden.randn))("randn of seed and size %s", (name, expected) => {
  const [seed, size] = name.split(".");
  const actual = new Generator(BigInt(seed)).randn([Number(size)]);
  expect(bytes(actual)).toEqual(bytes(expected));
});

test("draws of several kinds from one generator", () => {
  const g = new Generator(7);
  const integers = (n: number) => Array.from({ length: 5 }, () => BigInt(g.integer(n)));
  const { mixed } = golden;
  expect(bytes(g.randn([3]))).toEqual(bytes(mixed[0]));
  expect(bytes(g.rand([5]))).toEqual(bytes(mixed[1]));
  expect(bytes(g.randn([20]))).toEqual(bytes(mixed[2]));
  expect(integers(1000)).toEqual([...mixed[3].data]);
  expect(bytes(g.randn([2]))).toEqual(bytes(mixed[4]));
  expect(integers(2 ** 28 - 1)).toEqual([...mixed[5].data]);
});

test.each(Object.entries(digests.latents))("SDXL's latents of seed %s", (seed, expected) => {
  expect(digest(initialNoise({ seed: BigInt(seed), shape: [1, 4, 128, 128] }))).toBe(expected);
});

describe.each(RULES)("batch rule %s", (rule) => {
  test.each(Object.entries(golden[rule]))("seed %s", (seed, expected) => {
    const actual = initialNoise({ seed: BigInt(seed), shape: expected.shape, rule });
    expect(bytes(actual)).toEqual(bytes(expected));
  });

  test("SDXL's latents", () => {
    expect(digest(initialNoise({ seed: 42, shape: [2, 4, 128, 128], rule }))).toBe(digests[rule][42]);
  });
});
