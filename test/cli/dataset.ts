/** @file An icon dataset and a judge for `fewstep eval`, as small as it takes them. */

import { cpSync } from "node:fs";
import { graph, input, parametersOf } from "../../src/graph/index.ts";
import { clipVision, clipVisionConfig } from "../../src/models/index.ts";
import { rootScope } from "../../src/nn/index.ts";
import { saveComponent } from "../../src/pipelines/index.ts";
import { Generator, tensor } from "../../src/tensor/index.ts";
import { saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";

/** Black icons of some splits, in `icons`. */
export async function icons(
  side: number,
  splits = ["train", "heldout-pair", "train", "heldout-pair"],
): Promise<void> {
  const N = splits.length;
  const images = tensor("uint8", [N, side, side, 3], new Uint8Array(N * side * side * 3));
  await saveSafetensors(at("icons/images.safetensors"), { images });
  const row = { style: "twemoji", concept: "1f34e", label: "apple", keywords: [] };
  const rows = splits.map((split, i) => ({ ...row, id: `${i}`, split }));
  put("icons/metadata.jsonl", rows.map((r) => `${JSON.stringify(r)}\n`).join(""));
}

/** A model's text tower, beside an image tower with random weights, in `judge`. The tiny model's text tower has 12 features. */
export async function judge(model: string, side: number, projection_dim = 12): Promise<void> {
  cpSync(model, at("judge"), { recursive: true });
  const config = clipVisionConfig({
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    projection_dim,
    image_size: side,
    patch_size: side,
  });
  const { pooled, imageEmbeds } = clipVision(rootScope(), config, input("x", "float32", [1, 3, side, side]));
  const parameters = parametersOf(graph({ pooled, imageEmbeds }));
  const g = new Generator(0);
  const weights = Object.fromEntries(parameters.map(({ name, shape }) => [name, g.randn(shape as number[])]));
  await saveComponent(at("judge/image_encoder"), "CLIPVisionModelWithProjection", config, weights);
}
