/** @file Text encoders trained with the UNet: the same loss as with encodings made before, and a model at the end. */

import { cpSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { graph } from "../../src/graph/index.ts";
import { clipTextConfig, unetConfig } from "../../src/models/index.ts";
import { loadWeights, readConfig, SDXL } from "../../src/pipelines/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, Generator, type HostTensor } from "../../src/tensor/index.ts";
import { readTextEncoders } from "../../src/train/material.ts";
import { parseRecipe } from "../../src/train/recipe.ts";
import { train } from "../../src/train/run.ts";
import { promptEncoder, tokenFeeds } from "../../src/train/tasks.ts";
import { trainedPrompt, unetLoss } from "../../src/train/unet.ts";
import { judge } from "../cli/dataset.ts";
import { at, noise, put } from "../data/temporary.ts";
import { goldenPath } from "../parity/golden.ts";

const TINY = goldenPath("tiny-sdxl");

test("a loss through the encoders is that of their encodings, and of zeros where the prompt is dropped", async () => {
  const config = await readConfig(join(TINY, "unet/config.json"), unetConfig);
  const { configs, weights, tokenizers } = await readTextEncoders(TINY);
  const tokens = configs.textEncoder.max_position_embeddings;
  const size = { batch: 2, height: 8, width: 8, tokens, pooled: configs.textEncoder2.projection_dim };
  const all = new Map<string, HostTensor>(
    Object.entries({ ...weights, ...(await loadWeights(join(TINY, "unet"))) }),
  );
  await using through = await compile(
    graph({ loss: unetLoss(config, size, trainedPrompt(configs, size)).loss }),
    {
      weights: all,
    },
  );
  await using before = await compile(graph({ loss: unetLoss(config, size).loss }), { weights: all });
  await using encoder = await promptEncoder(configs, all, tokenizers);

  const g = new Generator(1);
  const shape = [2, config.in_channels, 8, 8];
  const feeds = {
    sample: g.randn(shape),
    target: g.randn(shape),
    timestep: floats([2], [900, 300]),
    time_ids: floats([2, 6], [8, 8, 0, 0, 8, 8, 8, 8, 0, 0, 8, 8]),
    weight: floats([2], [1, 2]),
  };
  const captions = ["a red apple", "a blue heart"];
  const { hidden, pooled } = await encoder.encode(captions);
  hidden.data.fill(0, hidden.data.length / 2);
  pooled.data.fill(0, pooled.data.length / 2);
  const keep = floats([2], [1, 0]);
  const given = await through.run({ ...feeds, ...tokenFeeds(tokenizers, captions), keep });
  const expected = await before.run({ ...feeds, hidden, pooled });
  expect(Number(given.loss.data[0])).toBeCloseTo(Number(expected.loss.data[0]), 5);
  const kept = await through.run({
    ...feeds,
    ...tokenFeeds(tokenizers, captions),
    keep: floats([2], [1, 1]),
  });
  expect(Math.abs(Number(kept.loss.data[0]) - Number(expected.loss.data[0]))).toBeGreaterThan(1e-4);
});

describe("a run that trains them", () => {
  const changed = async (a: string, b: string) => {
    const [first, second] = [await loadWeights(a), await loadWeights(b)];
    expect(Object.keys(second).sort()).toEqual(Object.keys(first).sort());
    return Object.keys(first).filter((k) => first[k].data.some((v, i) => v !== second[k].data[i]));
  };

  test("ends in a model with other encoders and the judge that came along", async () => {
    for (const name of ["red", "green"]) {
      put(`pictures/${name}.png`, await noise("png", 32));
      put(`pictures/${name}.txt`, `a ${name} apple`);
    }
    await judge(TINY, 32);
    const recipe = parseRecipe({
      task: "unet",
      out: at("run"),
      data: { kind: "pictures", path: at("pictures"), size: 32 },
      vae: join(TINY, "vae"),
      text: at("judge"),
      trainTextEncoders: true,
      start: join(TINY, "unet"),
      config: await readConfig(join(TINY, "unet/config.json"), unetConfig),
      steps: 2,
      batch: 2,
      microBatch: 2,
      learningRate: { peak: 1e-2, warmup: 0, decay: "constant" },
      emaDecay: 0,
      dropPrompt: 0,
      sampleEvery: 0,
      prompts: [],
    });
    for await (const _ of train(recipe, { replicas: 1 }));
    const model = at("run/model");
    const last =
      (await readConfig(join(TINY, "text_encoder/config.json"), clipTextConfig)).num_hidden_layers - 1;
    const first = await changed(join(TINY, "text_encoder"), join(model, "text_encoder"));
    expect(first).toContain("text_model.embeddings.token_embedding.weight");
    // SDXL takes the last but one layer, so nothing tells the last one of this encoder how to change.
    expect(first.filter((k) => k.includes(`layers.${last}.`) || k.includes("final_layer_norm"))).toEqual([]);
    expect(await changed(join(TINY, "text_encoder_2"), join(model, "text_encoder_2"))).toContain(
      "text_projection.weight",
    );
    expect(await changed(join(at("judge"), "text_encoder_2"), join(model, "judge/text_encoder_2"))).toEqual(
      [],
    );
    expect(readdirSync(join(model, "judge")).sort()).toEqual([
      "image_encoder",
      "text_encoder_2",
      "tokenizer_2",
    ]);
    await using sdxl = await SDXL.load(model);
    expect(await sdxl.textToImage("a red apple", { steps: 1, width: 32, height: 32 })).toHaveLength(1);

    // A run that goes on leaves what it has trained until it writes its own.
    cpSync(model, at("finished"), { recursive: true });
    const longer = train({ ...recipe, steps: 4 }, { replicas: 1 });
    await longer.next();
    await longer.return();
    for (const part of ["text_encoder", "text_encoder_2"])
      expect(await changed(at("finished", part), join(model, part))).toEqual([]);

    // The judge stays the same through a chain of runs.
    cpSync(model, at("first"), { recursive: true });
    const next = { ...recipe, out: at("next"), text: at("first"), start: at("first/unet"), steps: 1 };
    for await (const _ of train({ ...next, sampleEvery: 1 }, { replicas: 1 }));
    expect(await changed(join(at("judge"), "image_encoder"), at("next/model/judge/image_encoder"))).toEqual(
      [],
    );
  });
});
