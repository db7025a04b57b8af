/** @file Which pictures are decoded by tiles, and that tiles fit together. Values: test/parity/prompts.test.ts. */

import fc from "fast-check";
import { expect, test } from "vitest";
import { vaeConfig } from "../../src/models/index.ts";
import { fullAutoencoder } from "../../src/pipelines/autoencoder.ts";
import { SDXL } from "../../src/pipelines/index.ts";
import { tiledDecode, tilesFor } from "../../src/pipelines/tiling.ts";
import { type FloatTensor, floats, Generator } from "../../src/tensor/index.ts";
import { difference } from "../parity/golden.ts";
import { apart, TINY } from "./tiny.ts";

test("SDXL: from which size on", () => {
  const config = fullAutoencoder(vaeConfig({}));
  const tiles = { factor: 8, side: 128, step: 96 };
  const sizes = [
    [128, 128],
    [128, 129],
    [152, 104],
    [160, 160],
    [256, 128],
  ] as const;
  const tiled = (tiling: "auto" | "on" | "off") => sizes.map((size) => tilesFor(config, size, tiling));
  expect(tiled("on")).toEqual([undefined, tiles, tiles, tiles, tiles]);
  expect(tiled("auto")).toEqual([undefined, undefined, undefined, tiles, tiles]);
  expect(tiled("off")).toEqual(new Array(5).fill(undefined));
});

/** A decoder without a view of neighbours: latents enlarged. */
async function enlarge({ shape, data }: FloatTensor): Promise<FloatTensor> {
  const [, C, h, w] = shape;
  return floats(
    [1, C, 2 * h, 2 * w],
    Float32Array.from({ length: 4 * data.length }, (_, i) => {
      const [x, y, c] = [i % (2 * w), Math.floor(i / (2 * w)) % (2 * h), Math.floor(i / (4 * h * w))];
      return data[(c * h + (y >> 1)) * w + (x >> 1)];
    }),
  );
}

test("where the decoder sees one position at a time, tiles of any size make the whole", async () => {
  const sides = { h: fc.integer({ min: 1, max: 20 }), w: fc.integer({ min: 1, max: 20 }) };
  await fc.assert(
    fc.asyncProperty(
      fc.record({ ...sides, side: fc.integer({ min: 1, max: 9 }) }),
      async ({ h, w, side }) => {
        const config = { factor: 2, sampleSize: 2 * side };
        const tiles = tilesFor(config, [h, w], "on");
        const latents = new Generator(1).randn([1, 3, h, w]) as FloatTensor;
        const whole = await enlarge(latents);
        const picture = tiles ? await tiledDecode(enlarge, latents, tiles) : whole;
        expect(picture.shape).toEqual(whole.shape);
        expect(difference(picture, whole)).toBeLessThan(1e-5);
      },
    ),
    { numRuns: 40 },
  );
});

test("every picture of a batch is decoded by tiles", async () => {
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const options = { steps: 1, guidance: 1, width: 96, height: 80, batch: 2 };
  const [auto, off, on] = await Promise.all(
    (["auto", "off", "on"] as const).map((vaeTiling) =>
      sdxl.textToImage("a bird", { ...options, vaeTiling }),
    ),
  );
  for (const i of [0, 1]) {
    expect(auto[i].data).toEqual(off[i].data);
    expect(apart(on[i].data, off[i].data)).toBeGreaterThan(2);
    const [alone] = await sdxl.textToImage("a bird", { ...options, batch: 1, seed: i, vaeTiling: "on" });
    expect(apart(on[i].data, alone.data)).toBeLessThanOrEqual(1);
  }
  expect(on[0].parameters).toContain("VAE tiling: on");
});
