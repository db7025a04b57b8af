import { describe, expect, test } from "vitest";
import { aspectBuckets, batchSampler, coverCrop, nearestBucket, type Size } from "../../src/data/buckets.ts";

const name = ({ width, height }: Size) => `${width}x${height}`;

describe("sizes", () => {
  test("of SDXL", () => {
    // all but one are in the table of the SDXL paper, appendix I
    expect(aspectBuckets({ size: 1024, step: 64 }).map(name)).toEqual(
      (
        "704x1408 768x1344 768x1280 832x1216 896x1152 960x1088 1024x1024 " +
        "1088x960 1152x896 1216x832 1280x768 1344x768 1408x704"
      ).split(" "),
    );
  });

  test.each([
    [64, 16, 2],
    [64, 8, 2],
    [256, 32, 2],
    [512, 64, 1.5],
    [1024, 64, 4],
  ])(
    "side %d, step %d, aspect up to %d: bounded area, whole steps, both ways round",
    (size, step, maxAspect) => {
      const sizes = aspectBuckets({ size, step, maxAspect });
      expect(sizes.map(name)).toContain(`${size}x${size}`);
      for (const { width, height } of sizes) {
        expect(width * height).toBeLessThanOrEqual(size ** 2);
        expect([width % step, height % step]).toEqual([0, 0]);
        expect(Math.max(width / height, height / width)).toBeLessThanOrEqual(maxAspect);
        expect(sizes.map(name)).toContain(`${height}x${width}`);
      }
      expect(new Set(sizes.map(name)).size).toBe(sizes.length);
    },
  );

  test("refuses sizes that no bucket can have", () => {
    expect(() => aspectBuckets({ size: 100, step: 64 })).toThrow(
      "size 100 must be a multiple of the step 64",
    );
    expect(() => aspectBuckets({ size: 64, step: 0 })).toThrow("step 0");
    expect(() => aspectBuckets({ size: 64, step: 8, maxAspect: 0.5 })).toThrow("maxAspect is 0.5");
  });
});

test("a picture goes to the nearest ratio, alike for both orientations", () => {
  const sizes = aspectBuckets({ size: 1024, step: 64 });
  const of = (width: number, height: number) => name(sizes[nearestBucket({ width, height }, sizes)]);
  expect(of(500, 500)).toBe("1024x1024");
  expect(of(1920, 1080)).toBe("1344x768");
  expect(of(1080, 1920)).toBe("768x1344");
  expect(of(9000, 100)).toBe("1408x704");
  expect(of(4000, 3000)).toBe("1152x896");
});

test("a picture covers its bucket and is cropped at the centre", () => {
  expect(coverCrop({ width: 2000, height: 1000 }, { width: 64, height: 64 })).toEqual({
    resized: { width: 128, height: 64 },
    cropTopLeft: [0, 32],
  });
  expect(coverCrop({ width: 30, height: 40 }, { width: 48, height: 48 })).toEqual({
    resized: { width: 48, height: 64 },
    cropTopLeft: [8, 0],
  });
  expect(coverCrop({ width: 1, height: 999 }, { width: 8, height: 8 }).resized).toEqual({
    width: 8,
    height: 7992,
  });
});

describe("batches", () => {
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
  const members = [range(0, 5), range(5, 65), range(65, 95), range(95, 96)];
  const one = { micro: 0, micros: 1 };

  test("are known from their place alone", () => {
    const options = { members, batch: 4, seed: 7 };
    const [a, b] = [batchSampler(options), batchSampler(options)];
    const places = range(0, 40).flatMap((step) => range(0, 6).map((micro) => ({ step, micro, micros: 6 })));
    const forwards = places.map((p) => a.at(p));
    const backwards = places.toReversed().map((p) => b.at(p));
    expect(backwards.reverse()).toEqual(forwards);
    const other = batchSampler({ ...options, seed: 8 });
    expect(places.map((p) => other.at(p))).not.toEqual(forwards);
  });

  test("are full, of one bucket, and visit every picture once an epoch where counts divide", () => {
    const even = [range(0, 8), range(8, 24)];
    const sampler = batchSampler({ members: even, batch: 4, seed: 1 });
    expect(sampler.perEpoch).toBe(6);
    for (const epoch of [0, 1, 2]) {
      const batches = range(0, 6).map((i) => sampler.at({ ...one, step: epoch * 6 + i }));
      for (const { bucket, indices } of batches) {
        expect(indices).toHaveLength(4);
        expect(indices.every((i) => even[bucket].includes(i))).toBe(true);
      }
      expect(batches.flatMap((b) => b.indices).sort((x, y) => x - y)).toEqual(range(0, 24));
    }
    expect(sampler.at({ ...one, step: 0 })).not.toEqual(sampler.at({ ...one, step: 6 }));
  });

  test("take buckets in proportion to their pictures", () => {
    const sampler = batchSampler({ members, batch: 8, seed: 3 });
    const counts = members.map(() => 0);
    const steps = 12_000;
    for (let step = 0; step < steps; step++) counts[sampler.at({ ...one, step }).bucket]++;
    for (const [i, m] of members.entries()) {
      expect(counts[i] / steps).toBeGreaterThan((m.length / 96) * 0.9);
      expect(counts[i] / steps).toBeLessThan((m.length / 96) * 1.1);
    }
  });

  test("hold a picture twice only when the bucket has too few", () => {
    const sampler = batchSampler({ members: [range(0, 10), [10]], batch: 4, seed: 5 });
    for (let step = 0; step < 60; step++) {
      const { bucket, indices } = sampler.at({ ...one, step });
      expect(new Set(indices).size).toBe(bucket === 0 ? 4 : 1);
    }
  });

  test("micro-batches of a step share an epoch", () => {
    const sampler = batchSampler({ members: [range(0, 16)], batch: 2, seed: 5 });
    const seen = range(0, 2).flatMap((step) =>
      range(0, 4).flatMap((micro) => sampler.at({ step, micro, micros: 4 }).indices),
    );
    expect(seen.sort((x, y) => x - y)).toEqual(range(0, 16));
    expect(() => sampler.at({ step: 0, micro: 4, micros: 4 })).toThrow("no micro-batch 4 among 4");
  });

  test("of a bucket list every picture once", () => {
    const sampler = batchSampler({ members, batch: 4, seed: 0 });
    expect(sampler.batchesOf(0)).toEqual([[0, 1, 2, 3], [4]]);
    expect(sampler.batchesOf(3)).toEqual([[95]]);
  });

  test("need pictures", () => {
    expect(() => batchSampler({ members: [[]], batch: 4, seed: 0 })).toThrow("no pictures");
  });
});
