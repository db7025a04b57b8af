import { readdirSync, readFileSync, rmSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Dataset, type LatentCache, latentCache, loadPictures } from "../../src/data/index.ts";
import { type FloatTensor, floats } from "../../src/tensor/index.ts";
import { at, plain, put } from "./temporary.ts";

/** An "autoencoder": the mean of each plane in squares of eight, four channels. */
async function encode(x: FloatTensor): Promise<FloatTensor> {
  const [B, , H, W] = x.shape;
  const out = floats([B, 4, H / 8, W / 8]);
  const n = out.data.length / B;
  for (let i = 0; i < out.data.length; i++) out.data[i] = x.data[Math.floor(i / n) * 3 * H * W] + (i % n);
  return out;
}

const caches: LatentCache[] = [];
afterEach(async () => {
  for (const cache of caches.splice(0)) await cache[Symbol.asyncDispose]();
});

type Options = Omit<Parameters<typeof latentCache>[0], "encode"> & {
  dataset: Dataset;
  encode: typeof encode;
};

async function open({ encode: by = encode, ...options }: Partial<Options> = {}) {
  const { dataset = await loadPictures({ path: at("set"), size: 64, step: 16 }) } = options;
  const cache = await latentCache({
    ...{ key: "vae", folder: at("cache"), batch: 2 },
    ...options,
    dataset,
    encode: async (indices) => by(await dataset.pixels(indices)),
  });
  caches.push(cache);
  return { dataset, cache, counts: [cache.encoded, cache.reused] };
}
const files = () => readdirSync(at("cache")).sort();

beforeEach(async () => {
  for (let i = 0; i < 5; i++) {
    put(`set/${i}.png`, await plain("png", i < 3 ? [64, 64] : [120, 60], `#${i}0${i}0${i}0`));
    put(`set/${i}.txt`, `picture ${i}`);
  }
});

test("encodes each bucket once, then reads", async () => {
  const batches: string[] = [];
  const first = await open({
    encode: async (x) => {
      batches.push(x.shape.join("x"));
      return encode(x);
    },
  });
  expect(first.counts).toEqual([5, 0]);
  expect(batches).toEqual(["2x3x64x64", "1x3x64x64", "2x3x48x80"]);
  expect(files()).toHaveLength(2);
  const fresh = await encode(await first.dataset.pixels([2, 0]));
  const again = await open({ encode: () => Promise.reject(new Error("not needed")) });
  expect(again.counts).toEqual([0, 5]);
  for (const { cache } of [first, again]) {
    expect(await cache.latents([2, 0])).toEqual(fresh);
    expect((await cache.latents([3, 4])).shape).toEqual([2, 4, 6, 10]);
    await expect(cache.latents([0, 3])).rejects.toThrow("of one bucket");
  }
});

test("other weights and other buckets are other entries; old files go", async () => {
  await open();
  const old = files();
  expect((await open({ key: "other vae" })).counts).toEqual([5, 0]);
  expect(files()).toHaveLength(2);
  expect(files()).not.toEqual(old);
  const dataset = await loadPictures({ path: at("set"), size: 32, step: 16 });
  expect((await open({ dataset, key: "other vae" })).counts).toEqual([5, 0]);
});

test("a changed picture is encoded again, a new one added; captions do not matter", async () => {
  await open();
  utimesSync(at("set/1.png"), 1, 1);
  put("set/0.txt", "another caption");
  expect((await open()).counts).toEqual([1, 4]);
  put("set/00.png", await plain("png"));
  put("set/00.txt", "new");
  const { cache, counts, dataset } = await open();
  expect(counts).toEqual([1, 5]);
  const square = dataset.buckets.find((b) => b.width === b.height)!.members;
  expect(await cache.latents(square)).toEqual(await encode(await dataset.pixels(square)));
});

test.each([0, 5, 100, 0.9])("a file cut to %d is rebuilt", async (length) => {
  await open();
  const path = at("cache", files()[0]);
  const whole = readFileSync(path);
  truncateSync(path, length < 1 ? Math.floor(whole.length * length) : length);
  const { counts, cache, dataset } = await open();
  expect(counts[0]).toBeGreaterThan(0);
  expect(counts[0]).toBeLessThan(5);
  expect(files()).toHaveLength(2);
  expect(readFileSync(path).equals(whole)).toBe(true);
  expect(await cache.latents([0, 1])).toEqual(await encode(await dataset.pixels([0, 1])));
});

test("files of others stay", async () => {
  put("cache/notes.txt", "mine");
  put("cache/latents-mine.safetensors", "mine");
  await open();
  expect(files()).toContain("notes.txt");
  expect(files()).toContain("latents-mine.safetensors");
  writeFileSync(at("cache/latents-0123456789abcdef.safetensors"), "garbage");
  await open();
  expect(files()).not.toContain("latents-0123456789abcdef.safetensors");
});

test("an interrupted run keeps whole files and goes on", async () => {
  let calls = 0;
  const stop = open({ encode: (x) => (++calls === 3 ? Promise.reject(new Error("stopped")) : encode(x)) });
  await expect(stop).rejects.toThrow("stopped");
  expect(files()).toHaveLength(1);
  expect((await open()).counts).toEqual([2, 3]);
});

test("refuses what no autoencoder should give", async () => {
  await expect(open({ encode: async () => floats([1, 2]) })).rejects.toThrow(
    "2 pictures were encoded to [1,2], expected [B,C,h,w]",
  );
  await expect(open({ encode: async () => floats([2, 1, 1, 1], [0, Number.NaN]) })).rejects.toThrow(
    "1.png: its latents are not finite",
  );
  expect(files()).toEqual([]);
});

test("tells its progress", async () => {
  const seen: string[] = [];
  await open({ onProgress: (done, total) => seen.push(`${done}/${total}`) });
  expect(seen).toEqual(["2/5", "3/5", "5/5"]);
  rmSync(at("cache"), { recursive: true });
});
