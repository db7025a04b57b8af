/** @file A single file that says nothing of its networks, against diffusers; SDXL's names; CLIP's own vocabulary. */

import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type GenerateOptions, SDXL } from "../../src/pipelines/index.ts";
import { sdxlTokenizers } from "../../src/pipelines/vocabulary.ts";
import { tensor } from "../../src/tensor/index.ts";
import { ClipTokenizer } from "../../src/tokenizers/index.ts";
import { checkpointKeys } from "../weights/sdxl.ts";
import { difference, goldenJson, goldenTensors, worst } from "./golden.ts";
import { writeSingle } from "./single.ts";

interface Digest {
  tensors: number;
  sha256: string;
}

const golden = (await goldenJson("single")) as {
  keys: Record<string, { diffusers: Digest; checkpoint: Digest }>;
  calls: Record<string, GenerateOptions & { prompt: string }>;
  tokens: { text: string; ids: number[]; ids_2: number[] }[];
};

describe("names and shapes of SDXL base", () => {
  const keys = checkpointKeys();

  function digest(shapes: Record<string, { shape: readonly number[] }>): Digest {
    const lines = Object.entries(shapes).map(([key, { shape }]) => `${key} [${shape.join(", ")}]`);
    const sha256 = createHash("sha256").update(lines.sort().join("\n")).digest("hex");
    return { tensors: lines.length, sha256 };
  }

  test.each(["unet", "vae", "text_encoder", "text_encoder_2"] as const)("%s", (network) => {
    expect(digest(keys[network].ours)).toEqual(golden.keys[network].diffusers);
    expect(digest(keys[network].theirs)).toEqual(golden.keys[network].checkpoint);
  });

  test("are 2641, and 2513 in a single file", () => {
    const count = (layout: "diffusers" | "checkpoint") =>
      Object.values(golden.keys).reduce((sum, digests) => sum + digests[layout].tensors, 0);
    expect([count("diffusers"), count("checkpoint")]).toEqual([
      1680 + 248 + 196 + 517,
      1680 + 248 + 196 + 389,
    ]);
  });
});

describe("CLIP's own vocabulary", async () => {
  const [first, second] = (await sdxlTokenizers()).map((files) => new ClipTokenizer(files));

  test.each(golden.tokens)("$text", ({ text, ids, ids_2 }) => {
    expect(first.encode(text)).toEqual(ids);
    expect(second.encode(text)).toEqual(ids_2);
  });

  test("pads with the end of the text, and with 0", () => {
    expect(Array.from(first.encodeBatch(["a"]).ids.data, Number).slice(0, 5)).toEqual([
      49406, 320, 49407, 49407, 49407,
    ]);
    expect(Array.from(second.encodeBatch(["a"]).ids.data, Number).slice(0, 5)).toEqual([
      49406, 320, 49407, 0, 0,
    ]);
  });
});

describe("pictures", () => {
  const folder = mkdtempSync(join(tmpdir(), "fewstep-"));
  let sdxl: SDXL;
  beforeAll(async () => {
    await writeSingle(folder);
    sdxl = await SDXL.load(join(folder, "small.safetensors"), { threads: 1 });
  });
  afterAll(async () => {
    await sdxl?.dispose();
    rmSync(folder, { recursive: true });
  });

  test.each(Object.entries(golden.calls))("%s", async (name, { prompt, ...options }) => {
    const { latents, pictures } = await goldenTensors("single", "latents", "pictures");
    const run = sdxl.denoise(prompt, options);
    let step = await run.next();
    while (!step.done) step = await run.next();
    expect(worst({ [name]: step.value }, { [name]: latents[name] }).error).toBeLessThan(1e-4);
    const made = await sdxl.decode(step.value);
    const bytes = made.flatMap((p) => Array.from(p.data));
    const actual = tensor("uint8", pictures[name].shape, Uint8Array.from(bytes));
    expect(difference(actual, pictures[name])).toBeLessThanOrEqual(2);
  });
});
