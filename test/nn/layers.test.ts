/** @file Layers that are another way to compute what simpler ones say. */

import { expect, test } from "vitest";
import "../../src/platform/node.ts";
import { type Dim, grad, graph, input, mulDim, parametersOf, symbol } from "../../src/graph/index.ts";
import { conv2d, rootScope, upsampleConv2d } from "../../src/nn/index.ts";
import { resizeNearest } from "../../src/ops/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { Generator } from "../../src/tensor/index.ts";

const SIZES: Readonly<Record<string, readonly [Dim, Dim]>> = {
  known: [3, 5],
  open: [symbol("H"), symbol("W")],
};

test.each([
  ["known", true],
  ["known", false],
  ["open", true],
])(
  "a convolution of the doubled picture is the one of its quarters, sizes %s, bias %s",
  async (size, bias) => {
    const [H, W] = SIZES[size];
    const x = input("x", "float32", [2, 4, H, W]);
    const doubled = resizeNearest(x, [mulDim(H, 2), mulDim(W, 2)]);
    const plain = conv2d(rootScope(), doubled, { out: 6, bias });
    const quarters = upsampleConv2d(rootScope(), x, { out: 6, bias });
    expect(quarters.shape).toEqual(plain.shape);
    const parameters = parametersOf([quarters]);
    expect(parameters).toEqual(parametersOf([plain]));
    const values = parameters.map(({ value }) => value);
    const gradients = (y: typeof plain) => (size === "open" ? [] : grad(y.mul(y).sum(), [x, ...values]));
    const outputs = [plain, ...gradients(plain), quarters, ...gradients(quarters)];

    const g = new Generator(9);
    const weights = new Map(parameters.map(({ name, shape }) => [name, g.randn(shape)]));
    await using program = await compile(graph(Object.fromEntries(outputs.map((y, i) => [`${i}`, y]))), {
      weights,
    });
    const results = Object.values(await program.run({ x: g.randn([2, 4, 3, 5]) }));
    const half = results.length / 2;
    for (let i = 0; i < half; i++) {
      const [a, b] = [results[i].data as Float32Array, results[half + i].data as Float32Array];
      const most = Math.max(...a.map(Math.abs));
      expect(Math.max(...a.map((v, j) => Math.abs(v - b[j]))) / most).toBeLessThan(2e-6);
    }
  },
);
