import { expect, test } from "vitest";
import { vaeConfig } from "../../src/models/index.ts";
import { fullAutoencoder } from "../../src/pipelines/autoencoder.ts";
import { bundledModel, SDXL } from "../../src/pipelines/index.ts";
import { latentPicture, latentRgb } from "../../src/pipelines/preview.ts";
import { type FloatTensor, floats } from "../../src/tensor/index.ts";
import { TINY } from "./tiny.ts";

const none = async (): Promise<FloatTensor> => {
  throw new Error("not needed");
};

test("the map of SDXL's latents is known", async () => {
  const map = await latentRgb(fullAutoencoder(vaeConfig({})), none);
  // one position of 1, −1, 2, 0.5, and one of zeros
  const latents = floats([1, 4, 1, 2], [1, 0, -1, 0, 2, 0, 0.5, 0]);
  const rgb = [
    0.3651 + 0.2533 + 2 * 0.1076 - 0.3165 / 2 + 0.1084,
    0.4232 + 0.0042 + 2 * 0.1111 - 0.2492 / 2 - 0.0175,
    0.4341 - 0.1068 - 2 * 0.0362 - 0.2188 / 2 - 0.0011,
  ];
  const bytes = [...rgb, 0.1084, -0.0175, -0.0011].map((v) => Math.round((v + 1) * 127.5));
  expect(latentPicture(latents, map)).toEqual({ width: 2, height: 1, data: Uint8Array.from(bytes) });
  for (const other of [{ scaling_factor: 0.5 }, { latents_mean: [0, 0, 0, 0] }, { latent_channels: 16 }])
    await expect(latentRgb(fullAutoencoder(vaeConfig(other)), none)).rejects.toThrow("not needed");
});

test("that of other latents is fitted: a decoder that is linear is found", async () => {
  const config = vaeConfig({ latent_channels: 2, block_out_channels: [4, 4] });
  const true_ = [
    [0.1, -0.2, 0.05],
    [0.02, 0.15, -0.1],
    [0.1, 0, -0.05],
  ];
  const decode = async ({ shape, data }: FloatTensor): Promise<FloatTensor> => {
    const [B, , h, w] = shape;
    const out = floats([B, 3, 2 * h, 2 * w]);
    for (let i = 0; i < out.data.length; i++) {
      const [x, y] = [i % (2 * w), Math.floor(i / (2 * w)) % (2 * h)];
      const [colour, b] = [Math.floor(i / (4 * h * w)) % 3, Math.floor(i / (12 * h * w))];
      const at = (c: number) => data[((b * 2 + c) * h + (y >> 1)) * w + (x >> 1)];
      const texture = x % 2 ? 0.1 : -0.1; // gone in the mean
      out.data[i] = true_[0][colour] * at(0) + true_[1][colour] * at(1) + true_[2][colour] + texture;
    }
    return out;
  };
  const map = await latentRgb(fullAutoencoder(config), decode);
  for (const [c, row] of map.entries())
    for (const [colour, value] of row.entries()) expect(value).toBeCloseTo(true_[c][colour], 5);
});

test("of the bundled model's latents: its colours are recognised", async () => {
  await using sdxl = await SDXL.load(bundledModel(), { threads: 1, steps: 25 });
  const run = sdxl.denoise("a red apple", { seed: 1, steps: 8 });
  let step = await run.next();
  while (!step.done) step = await run.next();
  const [whole] = await sdxl.decode(step.value);
  const small = await sdxl.preview(step.value, "latent2rgb");
  expect([small.width, small.height]).toEqual([16, 16]);
  const pooled = (at: number): number => {
    const [c, x, y] = [at % 3, Math.floor(at / 3) % 16, Math.floor(at / 48)];
    let sum = 0;
    for (let k = 0; k < 16; k++) sum += whole.data[3 * ((4 * y + (k >> 2)) * 64 + 4 * x + (k % 4)) + c];
    return sum / 16;
  };
  const expected = Array.from(small.data, (_, at) => pooled(at));
  const total = (of: (at: number) => number): number => expected.reduce((sum, _, at) => sum + of(at), 0);
  const mean = [0, 1, 2].map((c) => total((at) => (at % 3 === c ? expected[at] / 256 : 0)));
  const error = total((at) => (small.data[at] - expected[at]) ** 2);
  const spread = total((at) => (expected[at] - mean[at % 3]) ** 2);
  expect(error / spread).toBeLessThan(0.5);
});

test("steps come with a preview of the first picture: of small ones by the VAE, else a pixel for each position", async () => {
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const seen: string[] = [];
  let last: Uint8Array | undefined;
  const options = { steps: 2, guidance: 1, batch: 2, sampler: undefined };
  const [made] = await sdxl.textToImage("a bird", {
    ...options,
    onStep: async (step) => {
      const { width, height, data } = await step.preview();
      seen.push(`${width}x${height}`);
      last = data;
    },
  });
  expect(last).toEqual(made.data); // the last estimate is the result
  await sdxl.textToImage("a bird", {
    ...{ ...options, steps: 1, width: 160, height: 132 },
    onStep: async (step) => {
      const { width, height } = await step.preview();
      seen.push(`${width}x${height}`);
    },
  });
  expect(seen).toEqual(["64x64", "64x64", "40x33"]);
});

test("loading tells of its parts", async () => {
  const parts: string[] = [];
  await using sdxl = await SDXL.load(TINY, {
    threads: 1,
    onLoad: ({ name, i, total }) => parts.push(`${name} ${i}/${total}`),
  });
  expect(parts).toEqual(["VAE decoder 0/3", "text encoders 1/3", "UNet 2/3"]);
  expect(sdxl.info.mostClipSkip).toBe(1);
});
