/** @file The UNet in two parts predicts what it predicts whole. */

import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import "../../src/platform/node.ts";
import { type Graph, inputsOf, nameOf, parametersOf } from "../../src/graph/index.ts";
import { changedScope, rootScope } from "../../src/nn/index.ts";
import { readComponents } from "../../src/pipelines/components.ts";
import { layoutChanges } from "../../src/pipelines/layout.ts";
import { GRAPHS, stepsOf } from "../../src/pipelines/programs.ts";
import { int8Layers, int8Names, withInt8 } from "../../src/quantize/layers.ts";
import { int8Matrix } from "../../src/quantize/matrix.ts";
import { compile, compileLoop } from "../../src/runtime/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor } from "../../src/tensor/index.ts";
import { loadSafetensors } from "../../src/weights/index.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));
const parts = await readComponents(TINY, {});
const { tensors } = await loadSafetensors(join(TINY, "unet/diffusion_pytorch_model.safetensors"));
const KEYS = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight";
const QUERIES = KEYS.replace("to_k", "to_q");
const shapeOf = (name: string) => tensors[name].shape;

function adapted(): { g: Graph; factors: Record<string, HostTensor> } {
  const generator = new Generator(8);
  const products = new Map([KEYS, QUERIES].map((name) => [name, shapeOf(name)]));
  const layout = { products, differences: new Map(), apart: [] };
  const g = GRAPHS.unet(
    parts,
    changedScope(rootScope(), (name) => layoutChanges(layout, name)),
  );
  const factors = [...products].flatMap(([name, [out, width]]) => [
    [`${name}.lora_up`, generator.randn([out, 2])],
    [`${name}.lora_down`, generator.randn([2, width])],
  ]);
  return { g, factors: Object.fromEntries(factors) };
}

function int8(): { g: Graph; matrices: [string, HostTensor][] } {
  const plain = GRAPHS.unet(parts, rootScope());
  const layers = int8Layers(plain).filter(({ rows, weight }) => rows[1] - rows[0] === shapeOf(weight)[0]);
  const matrices = layers.flatMap(({ key, weight, node }): [string, HostTensor][] => {
    const { matrix, scale } = int8Matrix(tensors[weight] as FloatTensor, node.op.int8!.axes, 8);
    return [
      [int8Names(key).matrix, matrix],
      [int8Names(key).scale, scale],
    ];
  });
  return { g: withInt8(plain, new Set(layers.map(({ key }) => key))), matrices };
}

test.each(["float", "adapted", "int8"])("%s", async (kind) => {
  const {
    g,
    factors = {},
    matrices = [],
  }: Partial<ReturnType<typeof adapted> & ReturnType<typeof int8>> = kind === "adapted"
    ? adapted()
    : kind === "int8"
      ? int8()
      : { g: GRAPHS.unet(parts, rootScope()) };
  const steps = stepsOf(g!);
  expect(steps).toHaveLength(2);
  expect(parametersOf(steps[0]).map(({ name }) => name)).toContain(
    kind === "int8" ? int8Names(KEYS).matrix : KEYS,
  );
  expect(inputsOf(steps[0]).map(nameOf)).not.toContain("sample");

  const weights = new Map([...Object.entries(tensors), ...matrices]);
  await using whole = await compile(g!, { weights });
  await using loop = await compileLoop(steps, { weights });
  const generator = new Generator(7);
  const { unet, text, tokenizers } = parts;
  for (const rows of [1, 2]) {
    const stays = {
      hidden: generator.randn([rows, tokenizers[0].maxLength, unet.cross_attention_dim]),
      pooled: generator.randn([rows, text[1].projection_dim]),
      time_ids: floats([rows, 6], new Float32Array(6 * rows).fill(64)),
    };
    for (const t of [999, 500]) {
      const sample = generator.randn([rows, 4, 6, 10]);
      const feeds = {
        sample,
        timestep: floats([rows], new Float32Array(rows).fill(t)),
        ...stays,
        ...factors,
      };
      const [a, b] = [await whole.run(feeds), await loop.run(feeds)];
      expect(b).toEqual(a);
    }
  }
});
