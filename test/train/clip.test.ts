/** @file Contrastive training: what the agreement between captions adds to the loss. */

import { expect, test } from "vitest";
import "../../src/platform/node.ts";
import { graph, parametersOf } from "../../src/graph/index.ts";
import { clipVisionConfig } from "../../src/models/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, Generator, type HostTensor } from "../../src/tensor/index.ts";
import { clipLoss } from "../../src/train/clip.ts";
import { readTextEncoders } from "../../src/train/material.ts";
import { tokenFeeds } from "../../src/train/tasks.ts";
import { goldenPath } from "../parity/golden.ts";

test("captions of a picture that agree cost little, those of others much, by its weight", async () => {
  const { configs, weights, tokenizers } = await readTextEncoders(goldenPath("tiny-sdxl"));
  const vision = clipVisionConfig({
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    projection_dim: configs.textEncoder2.projection_dim,
    image_size: 8,
    patch_size: 8,
  });
  const captions = ["a red apple", "the moon", "cat face, flat style"];
  const batch = captions.length;
  const g = new Generator(1);
  const pixels = g.randn([batch, 3, 8, 8]);
  const diagonal = floats([batch, batch], [1, 0, 0, 0, 1, 0, 0, 0, 1]);
  const given: Record<string, HostTensor> = { ...weights };

  const run = async (agreement: number, others: readonly string[]) => {
    const { loss, metrics } = clipLoss({ ...configs, vision }, { batch, agreement });
    const outputs = graph({ loss, ...metrics });
    for (const { name, shape } of parametersOf([loss])) given[name] ??= g.randn(shape as number[]);
    const keys = parametersOf([loss]).map((p) => p.name);
    await using program = await compile(outputs, { weights: new Map(keys.map((k) => [k, given[k]])) });
    const other = Object.entries(tokenFeeds(tokenizers, others)).map(([k, t]) => [`other_${k}`, t]);
    const result = await program.run({
      ...{ pixels, diagonal },
      ...tokenFeeds(tokenizers, captions),
      ...(agreement > 0 ? Object.fromEntries(other) : {}),
    });
    return Object.fromEntries(Object.entries(result).map(([k, t]) => [k, Number(t.data[0])]));
  };

  const same = await run(1, captions);
  const plain = await run(0, []);
  const twice = await run(2, captions);
  const swapped = await run(1, [captions[1], captions[2], captions[0]]);
  expect(Object.keys(plain).sort()).toEqual(["accuracy_1", "accuracy_2", "loss"]);
  expect([same.agreement_1, same.agreement_2]).toEqual([1, 1]);
  expect([swapped.agreement_1, swapped.agreement_2]).toEqual([0, 0]);
  expect(same.loss).toBeGreaterThan(plain.loss);
  expect(twice.loss - plain.loss).toBeCloseTo(2 * (same.loss - plain.loss), 4);
  expect(swapped.loss).toBeGreaterThan(same.loss);
});
