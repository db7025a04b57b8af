/** @file Values and gradients of the models against diffusers and transformers, on tiny random weights. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { grad, graph, input, parametersOf, type Value } from "../../src/graph/index.ts";
import {
  clipText,
  clipTextConfig,
  clipTextWithProjection,
  clipVision,
  clipVisionConfig,
  tinyConfig,
  tinyDecode,
  tinyEncode,
  unet,
  unetConfig,
  vaeConfig,
  vaeDecode,
  vaeEncode,
} from "../../src/models/index.ts";
import { rootScope, type Scope } from "../../src/nn/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { matchKeys } from "../../src/weights/index.ts";
import { goldenJson, goldenTensors, largest, prefixed, type Tensors, worst } from "./golden.ts";

type Values = Record<string, Value>;
/** The outputs of a golden from its inputs. */
type Build = (scope: Scope, config: unknown, inputs: Values) => Values;

function hidden(states: readonly Value[]): Values {
  return Object.fromEntries(states.map((h, i) => [`hidden_${i}`, h]));
}

const unetCase: Build = (scope, config, { sample, timestep, hidden, pooled, time_ids }) => ({
  prediction: unet(scope, unetConfig(config), {
    sample,
    timestep,
    encoderHiddenStates: hidden,
    textEmbeds: pooled,
    timeIds: time_ids,
  }),
});

const vaeCase: Build = (scope, config, { pictures, latents }) => ({
  encoded: vaeEncode(scope, vaeConfig(config), pictures),
  decoded: vaeDecode(scope, vaeConfig(config), latents),
});

const cases: Record<string, Build> = {
  "clip-text": (scope, config, { ids, end }) => {
    const out = clipText(scope, clipTextConfig(config), { ids, end });
    return { ...hidden(out.hiddenStates), last: out.lastHiddenState, pooled: out.pooled };
  },
  "clip-text-projection": (scope, config, { ids, end }) => {
    const out = clipTextWithProjection(scope, clipTextConfig(config), { ids, end });
    return { ...hidden(out.hiddenStates), last: out.lastHiddenState, embeds: out.textEmbeds };
  },
  "clip-vision": (scope, config, { pixels }) => {
    const out = clipVision(scope, clipVisionConfig(config), pixels);
    return { ...hidden(out.hiddenStates), embeds: out.imageEmbeds };
  },
  unet: unetCase,
  "unet-plain": unetCase,
  vae: vaeCase,
  "vae-plain": vaeCase,
  tiny: (scope, config, { pictures, latents }) => ({
    encoded: tinyEncode(scope, tinyConfig(config), pictures),
    decoded: tinyDecode(scope, tinyConfig(config), latents),
  }),
};

function inputValues(prefix: string, tensors: Tensors): Values {
  const value = (name: string) => input(`${prefix}.${name}`, tensors[name].dtype, tensors[name].shape);
  return Object.fromEntries(Object.keys(tensors).map((name) => [name, value(name)]));
}

describe.each(Object.entries(cases))("%s", (name, build) => {
  test("agrees with the reference", async () => {
    const golden = await goldenTensors(name, "weight", "input", "output", "cotangent", "gradient");
    const outputs = build(rootScope(), await goldenJson(name), inputValues("input", golden.input));

    // The same parameters, both ways.
    const parameters = parametersOf(graph(outputs));
    matchKeys(name, Object.fromEntries(parameters.map((p) => [p.name, p.shape])), golden.weight);
    expect(Object.keys(outputs).sort()).toEqual(Object.keys(golden.output).sort());

    const cotangents = inputValues("cotangent", golden.cotangent);
    const loss = Object.entries(outputs)
      .map(([k, v]) => v.mul(cotangents[k]).sum())
      .reduce((a, b) => a.add(b));
    const gradients = grad(
      loss,
      parameters.map((p) => p.value),
    );
    const byKey = Object.fromEntries(parameters.map((p, i) => [p.name, gradients[i]]));
    const g = graph({ ...prefixed("output", outputs), ...prefixed("gradient", byKey) });
    await using program = await compile(g, { threads: 1 });
    const result = await program.run({
      ...golden.weight,
      ...prefixed("input", golden.input),
      ...prefixed("cotangent", golden.cotangent),
    });

    const values = worst(result, prefixed("output", golden.output));
    expect(values.error, values.where).toBeLessThan(1e-5);
    // Some gradients are zero but for rounding, such as those of key biases: softmax does not see them.
    const floor = 1e-3 * Math.max(...Object.values(golden.gradient).map(largest));
    const slopes = worst(result, prefixed("gradient", golden.gradient), floor);
    expect(slopes.error, slopes.where).toBeLessThan(1e-3);
  });
});

test("a UNet's skips set the sizes where they do not halve evenly", async () => {
  const { weight } = await goldenTensors("unet-plain", "weight");
  const golden = await goldenTensors("unet-odd", "input", "output");
  const outputs = unetCase(rootScope(), await goldenJson("unet-plain"), inputValues("input", golden.input));
  await using program = await compile(graph(outputs), { threads: 1 });
  const result = await program.run({ ...weight, ...prefixed("input", golden.input) });
  expect(worst(result, golden.output).error).toBeLessThan(1e-5);
});

test("settings that change what a network computes are refused, not ignored", async () => {
  const [unetJson, vaeJson] = (await Promise.all(["unet", "vae"].map(goldenJson))) as object[];
  for (const [field, value] of Object.entries({
    center_input_sample: true,
    mid_block_scale_factor: 1.4,
    time_embedding_type: "fourier",
    timestep_post_act: "silu",
    num_class_embeds: 10,
    dual_cross_attention: true,
  }))
    expect(() => unetConfig({ ...unetJson, [field]: value })).toThrow(field);
  const down_block_types = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"];
  expect(() => vaeConfig({ ...vaeJson, down_block_types })).toThrow("down_block_types");
});

test("a config without block types is completed, so that diffusers builds every level", () => {
  const config = vaeConfig({ block_out_channels: [4, 8] });
  expect(config.down_block_types).toEqual(["DownEncoderBlock2D", "DownEncoderBlock2D"]);
  expect(config.up_block_types).toEqual(["UpDecoderBlock2D", "UpDecoderBlock2D"]);
});
