/** @file `fewstep eval` refuses what it cannot judge before it makes any picture. */

import { cpSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { beforeEach, describe, expect, test } from "vitest";
import { graph, input, parametersOf } from "../../src/graph/index.ts";
import { clipVision, clipVisionConfig } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";
import { saveComponent } from "../../src/pipelines/index.ts";
import { floats, tensor } from "../../src/tensor/index.ts";
import { saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { expectRefusal, fewstep } from "./run.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));

function evaluate(...more: string[]): ReturnType<typeof fewstep> {
  return fewstep([
    "eval",
    "--model",
    TINY,
    "--judge",
    at("judge"),
    "--data",
    at("icons"),
    "--count",
    "2",
    ...more,
  ]);
}

/** Four black icons, half of them held out. */
async function icons(side: number): Promise<void> {
  const images = tensor("uint8", [4, side, side, 3], new Uint8Array(4 * side * side * 3));
  await saveSafetensors(at("icons/images.safetensors"), { images });
  const row = { style: "twemoji", concept: "1f34e", label: "apple", keywords: [] };
  const rows = ["train", "heldout-pair", "train", "heldout-pair"].map((split, i) => ({
    ...row,
    id: `${i}`,
    split,
  }));
  put("icons/metadata.jsonl", rows.map((r) => `${JSON.stringify(r)}\n`).join(""));
}

/** The tiny model's text tower, beside an image tower of zeros. */
async function judge(side: number): Promise<void> {
  cpSync(TINY, at("judge"), { recursive: true });
  const config = clipVisionConfig({
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    projection_dim: 24,
    image_size: side,
    patch_size: side,
  });
  const { pooled, imageEmbeds } = clipVision(rootScope(), config, input("x", "float32", [1, 3, side, side]));
  const parameters = parametersOf(graph({ pooled, imageEmbeds }));
  const zeros = Object.fromEntries(parameters.map((p) => [p.name, floats(p.shape as number[])]));
  await saveComponent(at("judge/image_encoder"), "CLIPVisionModelWithProjection", config, zeros);
}

beforeEach(async () => {
  await icons(64);
  await judge(64);
});

describe("refused:", () => {
  test.each<[string, () => unknown, string | RegExp]>([
    [
      "no dataset",
      () => rmSync(at("icons"), { recursive: true }),
      /icons: not an icon dataset: it has no images.saf.*; make one/,
    ],
    [
      "a dataset that is cut off",
      () => truncateSync(at("icons/images.safetensors"), 2000),
      /icons: images.safetensors: truncated: .*; fetch it again$/m,
    ],
    [
      "weights for a dataset",
      () => cpSync(`${TINY}/vae/diffusion_pytorch_model.safetensors`, at("icons/images.safetensors")),
      /icons: not an icon dataset: its images are not uint8 \[N,size,size,3\]; make one/,
    ],
    [
      "no captions",
      () => rmSync(at("icons/metadata.jsonl")),
      /icons\/metadata.jsonl: no such file or folder$/m,
    ],
    [
      "half a line",
      () => put("icons/metadata.jsonl", '{"id":'),
      /icons: .*: line 1 of metadata.jsonl is no picture; make/,
    ],
    [
      "too few lines",
      () => put("icons/metadata.jsonl", readFileSync(at("icons/metadata.jsonl"), "utf8").replace(/.*\n/, "")),
      /icons: not an icon dataset: 4 images, but 3 lines in metadata.jsonl; make one/,
    ],
    [
      "nothing held out",
      () =>
        put(
          "icons/metadata.jsonl",
          readFileSync(at("icons/metadata.jsonl"), "utf8").replaceAll("heldout-pair", "train"),
        ),
      /icons: 4 training and 0 held-out pictures; 2 of each are needed$/m,
    ],
    [
      "pictures of another size",
      () => icons(32),
      /looks at 64 pixels, the pictures of .* have 32, those of .* 64; all must be/,
    ],
    [
      "a judge of another size",
      () => judge(16),
      /the judge .* looks at 16 pixels, the pictures of .* have 64/,
    ],
    [
      "no judge",
      () => rmSync(at("judge"), { recursive: true }),
      /judge\/image_encoder\/config.json: no such file$/m,
    ],
    [
      "a judge that is cut off",
      () => truncateSync(at("judge/image_encoder/model.safetensors"), 3000),
      /judge\/image_encoder: model.safetensors: truncated: /,
    ],
  ])("%s", async (_, spoil, message) => {
    await spoil();
    expectRefusal(await evaluate(), message);
  });

  test("no model", async () =>
    expectRefusal(await evaluate("--model", at("none")), /none: no such folder; name a folder/));

  test("a count of one, a place that cannot be written", async () => {
    const [count, sheet] = await Promise.all([
      evaluate("--count", "1"),
      evaluate("--sheet", put("file", "")),
    ]);
    expectRefusal(count, "'1' is invalid. Give a whole number from 2 to 1000000.");
    expectRefusal(sheet, /--sheet .*file: cannot write there: .*; name another folder$/m);
  });
});

test("what is not spoilt is judged", async () => {
  const { code, stdout, stderr } = await evaluate("--steps", "1", "--json");
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(JSON.parse(stdout)).toMatchObject({ steps: 1, heldout: { count: 2 }, seen: { count: 2 } });
});
