/** @file The teacher's pictures are drawn once, and never taken from a file that is not whole. */

import { cpSync, readdirSync, readFileSync, renameSync, truncateSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { beforeEach, describe, expect, test } from "vitest";
import "../../src/index.node.ts";
import { bySeeds, draw, evaluationsOf, variedCaptions } from "../../src/eval/draw.ts";
import { modelHash } from "../../src/eval/index.ts";
import { Teacher } from "../../src/eval/teacher.ts";
import { SDXL } from "../../src/pipelines/index.ts";
import { HOST } from "../../src/platform/files.ts";
import { fileHash } from "../../src/platform/index.ts";
import { heun } from "../../src/samplers/index.ts";
import { loadSafetensors, saveSafetensors } from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));
const UNET = "unet/diffusion_pytorch_model.safetensors";
const CAPTIONS = ["a red apple", "a house"];

beforeEach(() => cpSync(TINY, at("model"), { recursive: true }));

/** Pictures, and how many of them had to be drawn. */
async function pictures(
  options: { steps?: number; guidance?: number; seed?: number; captions?: string[] } = {},
) {
  const { steps = 1, guidance = 2, seed, captions = CAPTIONS } = options;
  await using teacher = await Teacher.load(at("model"), { steps, guidance, seed, cache: at("cache") });
  const before = files();
  const list = await teacher.pictures(captions);
  return { bytes: list.map((p) => Buffer.from(p)), fresh: files().length > before.length };
}

const files = (): string[] => {
  try {
    return readdirSync(at("cache"));
  } catch {
    return [];
  }
};
const cached = (): string => at("cache", files()[0]);

describe("teacher", () => {
  test("its pictures are those of the model's own UNet, with the seeds of the model that is judged", async () => {
    const { bytes, fresh } = await pictures();
    await using sdxl = await SDXL.load(TINY);
    const expected = await draw(sdxl, CAPTIONS, { steps: 1, guidance: 2 });
    expect(fresh).toBe(true);
    expect(bytes).toEqual(expected.map((p) => Buffer.from(p.data)));
    expect(expected.map((p) => p.seed)).toEqual([0, 1]);
    expect((await pictures()).fresh).toBe(false);
    expect((await pictures()).bytes).toEqual(bytes);
    // caption i has seed + i
    const moved = await pictures({ seed: 1, captions: ["a house", "a tree"] });
    expect(moved.bytes[0]).toEqual(bytes[1]);
  });

  test("few-step weights of the folder are not its own", async () => {
    const { tensors } = await loadSafetensors(at("model", UNET));
    await saveSafetensors(at("model/x_1step_unet.safetensors"), tensors, {
      "fewstep.steps": "1",
      "fewstep.prediction_type": "sample",
    });
    const { bytes } = await pictures();
    const index = JSON.parse(readFileSync(at("model/model_index.json"), "utf8"));
    index.fewstep = { lightning: { default: 1, files: { 1: "x_1step_unet.safetensors" } } };
    writeFileSync(at("model/model_index.json"), JSON.stringify(index));
    const again = await pictures();
    expect(again.fresh).toBe(false); // what few-step weights are listed changes nothing
    expect(again.bytes).toEqual(bytes);
  });

  test("a distilled model is no reference", async () => {
    const { tensors } = await loadSafetensors(at("model", UNET));
    await saveSafetensors(at("model", UNET), tensors, { "fewstep.steps": "4" });
    await expect(pictures()).rejects.toThrow(/model is distilled itself, and no reference for others; name/);
  });

  test.each<[string, () => unknown]>([
    ["other steps", () => pictures({ steps: 2 })],
    ["other guidance", () => pictures({ guidance: 3 })],
    ["another seed", () => pictures({ seed: 1 })],
    ["other captions", () => pictures({ captions: ["a red apple", "a tree"] })],
    [
      "another schedule",
      async () => {
        const file = at("model/scheduler/scheduler_config.json");
        writeFileSync(file, readFileSync(file, "utf8").replace("leading", "trailing"));
        return pictures();
      },
    ],
    [
      "other weights",
      async () => {
        const bytes = readFileSync(at("model", UNET));
        bytes[bytes.length - 2] ^= 1;
        writeFileSync(at("model", UNET), bytes);
        return pictures();
      },
    ],
  ])("%s, other pictures", async (_, change) => {
    await pictures();
    expect(await change()).toMatchObject({ fresh: true });
  });

  test.each<[string, () => void]>([
    ["cut off", () => truncateSync(cached(), 5000)],
    ["empty", () => truncateSync(cached(), 0)],
    [
      "changed in one bit",
      () => {
        const bytes = readFileSync(cached());
        bytes[bytes.length - 1] ^= 1;
        writeFileSync(cached(), bytes);
      },
    ],
    ["another file", () => cpSync(at("model", UNET), cached())],
    [
      "left unfinished by a killed process",
      () => renameSync(cached(), `${cached()}.${HOST}-9999999-0-0.tmp`),
    ],
  ])("a cache file that is %s is made anew", async (_, spoil) => {
    const { bytes } = await pictures();
    spoil();
    expect((await pictures()).bytes).toEqual(bytes);
    expect(files()).toHaveLength(1);
    const { tensors } = await loadSafetensors(cached());
    expect(Buffer.from(tensors.pictures.data as Uint8Array)).toEqual(Buffer.concat(bytes));
  });
});

test("diversity is measured on some captions, evenly spread, with four seeds each", () => {
  const captions = Array.from({ length: 40 }, (_, i) => String(i));
  const varied = variedCaptions(captions);
  expect(varied).toHaveLength(64);
  expect(bySeeds(varied).map((group) => new Set(group).size)).toEqual(Array(16).fill(1));
  expect(new Set(varied).size).toBe(16);
  expect(variedCaptions(["a", "b"])).toEqual([..."aaaabbbb"]);
});

test("guidance takes two evaluations a step", () => {
  expect(evaluationsOf({ steps: 32, guidance: 4 })).toBe(64);
  expect(evaluationsOf({ steps: 4, guidance: 1 })).toBe(4);
  expect(evaluationsOf({ steps: 4, guidance: 2 }, heun)).toBe(14);
});

test("a model's hash is that of what decides its pictures", async () => {
  const whole = await modelHash(at("model"));
  expect(await modelHash(TINY)).toBe(whole);
  writeFileSync(at("model/README.md"), "read me");
  expect(await modelHash(at("model"))).toBe(whole);
  writeFileSync(at("model/unet/more.json"), "{}");
  expect(await modelHash(at("model"))).not.toBe(whole);
  expect(await modelHash(at("model", UNET))).toBe(await fileHash(at("model", UNET)));
});

test("a folder with networks alone has a hash", async () => {
  renameSync(at("model/model_index.json"), at("model_index.json"));
  const parts = await modelHash(at("model"), ["unet"]);
  expect(await modelHash(at("model"), ["unet", "vae"])).not.toBe(parts);
});
