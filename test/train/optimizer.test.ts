/** @file One step of Muon against its definition: Newton-Schulz iterations on the matrix itself, in double precision. */

import { Matrix } from "ml-matrix";
import { expect, test } from "vitest";
import "../../src/platform/node.ts";
import { input, parameter } from "../../src/graph/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, Generator } from "../../src/tensor/index.ts";
import { muon, trainStep } from "../../src/train/index.ts";
import { scalarFeeds } from "../../src/train/optimizer.ts";

const LEARNING_RATE = 0.01;
const DECAY = 0.1;

/** Jordan et al. 2024, with the shorter side in front. */
function newtonSchulz(g: Matrix): Matrix {
  if (g.rows > g.columns) return newtonSchulz(g.transpose()).transpose();
  let x = Matrix.div(g, g.norm("frobenius"));
  for (let k = 0; k < 5; k++) {
    const a = x.mmul(x.transpose());
    const b = Matrix.add(Matrix.mul(a, -4.775), Matrix.mul(a.mmul(a), 2.0315));
    x = Matrix.add(Matrix.mul(x, 3.4445), b.mmul(x));
  }
  return x;
}

test.each([[[8, 20]], [[20, 8]], [[12, 12]], [[6, 4, 3, 3]]])(
  "a step on weights of shape %j",
  async (shape) => {
    const random = new Generator(3);
    const gradient = floats(shape);
    for (let i = 0; i < gradient.data.length; i++) gradient.data[i] = random.random() - 0.4;
    const start = floats(shape);
    for (let i = 0; i < start.data.length; i++) start.data[i] = random.random();

    const optimizer = muon({ weightDecay: DECAY });
    const w = parameter("w", shape, { kind: "constant", value: 0 });
    const loss = w.mul(input("g", "float32", shape)).sum(); // so that g is the gradient
    const { graph, state } = trainStep(loss, { optimizer });
    await using program = await compile(graph, { state, threads: 1 });
    program.set("w", start);
    const scalars = { ...optimizer.scalars(1, LEARNING_RATE), clip: 1, emaDecay: 0 };
    const { learningRate, decay, clip } = scalars;
    await program.run({ g: gradient, ...scalarFeeds({ learningRate, decay, clip }) });
    const got = Array.from((await program.get("w")).data, Number);

    const rows = shape[0];
    const columns = got.length / rows;
    const matrix = (t: typeof start) => Matrix.from1DArray(rows, columns, Array.from(t.data, Number));
    const step = newtonSchulz(matrix(gradient)).mul(0.2 * Math.sqrt(Math.max(rows, columns)) * LEARNING_RATE);
    const expected = matrix(start)
      .mul(1 - LEARNING_RATE * DECAY)
      .sub(step)
      .to1DArray();
    const worst = Math.max(...expected.map((v, i) => Math.abs(v - got[i])));
    expect(worst / LEARNING_RATE).toBeLessThan(1e-3);
  },
);
