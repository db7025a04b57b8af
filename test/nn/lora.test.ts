/** @file Low-rank adapters as scopes: the same layers, other weights. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { graph, input, type ParameterInfo, parametersOf, type Value } from "../../src/graph/index.ts";
import { type Adapter, conv2d, linear, loraScope, rootScope } from "../../src/nn/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { type FloatTensor, Generator, type HostTensor } from "../../src/tensor/index.ts";

const adapter: Adapter = { rank: (path) => (path === "skip" ? undefined : 2), scale: () => 0.5 };
const image = input("image", "float32", [1, 3, 4, 4]);
const tokens = input("tokens", "float32", [2, 3]);

function random(parameters: readonly ParameterInfo[]): Record<string, HostTensor> {
  const g = new Generator(5);
  return Object.fromEntries(parameters.map(({ name, shape }) => [name, g.randn(shape)]));
}

async function run(y: Value, weights: Record<string, HostTensor>, feeds: Record<string, HostTensor>) {
  await using program = await compile(graph({ y }), { weights: new Map(Object.entries(weights)) });
  return (await program.run(feeds)).y.data as Float32Array;
}

describe("loraScope", () => {
  test("a convolution's weight becomes W + scale·up·down", async () => {
    const build = (p = rootScope()) => conv2d(p.at("conv"), image, { out: 5 });
    const adapted = build(loraScope(rootScope(), adapter));
    const parameters = parametersOf([adapted]);
    expect(Object.fromEntries(parameters.map((p) => [p.name, p.shape]))).toEqual({
      "conv.weight": [5, 3, 3, 3],
      "conv.bias": [5],
      "conv.lora_down.weight": [2, 3, 3, 3],
      "conv.lora_up.weight": [5, 2, 1, 1],
    });
    const weights = random(parameters);
    const [down, up] = ["down", "up"].map((n) => weights[`conv.lora_${n}.weight`].data as Float32Array);
    const merged = weights["conv.weight"].data.slice() as Float32Array;
    for (let o = 0; o < 5; o++)
      for (let i = 0; i < 27; i++)
        merged[o * 27 + i] += 0.5 * (up[o * 2] * down[i] + up[o * 2 + 1] * down[27 + i]);
    const feeds = { image: new Generator(6).randn([1, 3, 4, 4]) };
    const got = await run(adapted, weights, feeds);
    const plain = {
      "conv.bias": weights["conv.bias"],
      "conv.weight": { ...weights["conv.weight"], data: merged },
    };
    const expected = await run(build(), plain, feeds);
    expect(got.length).toBe(80);
    for (const [i, v] of expected.entries()) expect(got[i]).toBeCloseTo(v, 4);
  });

  test("modules that it leaves out stay as they are, and a fresh adapter changes nothing", async () => {
    const build = (p = rootScope()) =>
      linear(p.at("skip"), linear(p.at("in"), tokens, { out: 4 }), { out: 3 });
    const adapted = build(loraScope(rootScope(), adapter));
    const parameters = parametersOf([adapted]);
    expect(parameters.filter((p) => p.name.startsWith("skip")).map((p) => p.name)).toEqual([
      "skip.weight",
      "skip.bias",
    ]);
    const up = parameters.find((p) => p.name === "in.lora_up.weight");
    expect(up?.init).toEqual({ kind: "constant", value: 0 });
    const weights = random(parameters);
    (weights["in.lora_up.weight"] as FloatTensor).data.fill(0);
    const feeds = { tokens: new Generator(7).randn([2, 3]) };
    const base = Object.fromEntries(Object.entries(weights).filter(([k]) => !k.includes("lora")));
    expect(await run(adapted, weights, feeds)).toEqual(await run(build(), base, feeds));
  });

  test("adapters with other names stack", () => {
    const second = { ...adapter, name: "other" };
    const y = linear(loraScope(loraScope(rootScope(), adapter), second).at("in"), tokens, { out: 4 });
    expect(parametersOf([y]).map((p) => p.name)).toEqual(
      expect.arrayContaining(["in.lora_up.weight", "in.other_up.weight"]),
    );
  });
});
