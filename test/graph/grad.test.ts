/** @file The walker of reverse mode: accumulation, pruning, recomputation. The operators' rules are tested in contract. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import {
  checkpoint,
  grad,
  graph,
  input,
  nameOf,
  parameter,
  stopGradient,
  topological,
  type Value,
  verify,
  vjp,
} from "../../src/graph/index.ts";
import { less, silu, where } from "../../src/ops/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, Generator, type HostTensor, sizeOf } from "../../src/tensor/index.ts";

const leaf = (name: string, ...shape: number[]) => parameter(name, shape, { kind: "constant", value: 0 });

/** Values of a record of nodes, on leaves that are filled from their names. */
async function run(outputs: Record<string, Value>): Promise<Record<string, HostTensor>> {
  const g = verify(graph(outputs));
  const feeds: Record<string, HostTensor> = {};
  for (const v of topological(Object.values(outputs)))
    if (v.op.leaf && "name" in v.attrs) {
      const shape = v.shape as number[];
      const random = new Generator([...nameOf(v)].reduce((n, c) => n * 31 + c.charCodeAt(0), 7));
      feeds[nameOf(v)] = floats(
        shape,
        Array.from({ length: sizeOf(shape) }, () => random.random() * 2 - 1),
      );
    }
  await using program = await compile(g, { threads: 1 });
  return await program.run(feeds); // before it is disposed
}

/** Gradients with respect to leaves, by name. */
async function gradients(loss: Value, ...wrt: Value[]): Promise<Record<string, number[]>> {
  const grads = grad(loss, wrt);
  const out = await run(Object.fromEntries(grads.map((g, i) => [`d${nameOf(wrt[i])}`, g])));
  return Object.fromEntries(wrt.map((w) => [nameOf(w), Array.from(out[`d${nameOf(w)}`].data, Number)]));
}

function expectClose(actual: Record<string, number[]>, expected: Record<string, number[]>): void {
  expect(Object.keys(actual)).toEqual(Object.keys(expected));
  for (const [k, values] of Object.entries(expected)) {
    const scale = Math.max(...values.map(Math.abs));
    expect(scale, k).toBeGreaterThan(0);
    expect(Math.max(...values.map((v, i) => Math.abs(v - actual[k][i]))) / scale, k).toBeLessThan(1e-5);
  }
}

const [a, b] = [leaf("a", 3, 3), leaf("b", 3, 3)];

describe("grad", () => {
  test("uses of one value add up", async () => {
    const { ones, two } = await run({
      ones: grad(a.add(a).add(a).sum(), [a])[0],
      two: grad(a.mul(a).sum(), [a])[0].div(a),
    });
    expect(Array.from(ones.data, Number)).toEqual(Array(9).fill(3));
    for (const v of two.data) expect(v).toBeCloseTo(2, 5);
  });

  test("what broadcasts is summed", async () => {
    const row = leaf("row", 1, 3);
    const { drow } = await run({
      drow: grad(
        a
          .mul(0)
          .add(row)
          .add(row.reshape([3]))
          .sum(),
        [row],
      )[0],
    });
    expect(drow).toMatchObject({ shape: [1, 3], data: Float32Array.of(6, 6, 6) });
  });

  test("zeros where the loss does not depend on it", async () => {
    const { db } = await run({ db: grad(a.sum(), [b])[0] });
    expect(Array.from(db.data, Number).map(Math.abs)).toEqual(Array(9).fill(0));
  });

  test("a value inside the graph is a variable like any other", async () => {
    const h = a.matmul(b);
    const { dh, expected } = await run({ dh: grad(h.pow(2).sum(), [h])[0], expected: h.mul(2) });
    expect(dh).toEqual(expected);
  });

  test("vjp takes several roots, and a root may be a variable", async () => {
    const dy = input("dy", "float32", [3, 3]);
    const { got, expected } = await run({
      got: vjp([a.mul(b), a], [dy, b], [a])[0],
      expected: dy.mul(b).add(b),
    });
    expect(got).toEqual(expected);
  });

  test("second derivatives", async () => {
    const [first] = grad(a.pow(3).sum(), [a]);
    const { second, expected } = await run({ second: grad(first.sum(), [a])[0], expected: a.mul(6) });
    for (const [i, v] of second.data.entries()) expect(v).toBeCloseTo(Number(expected.data[i]), 5);
  });

  test("refuses what has no gradient, and only on the way", () => {
    expect(() => grad(a, [a])).toThrow("grad: the loss must be a scalar, got float32[3,3]");
    const rounded = a.cast("int64").cast("float32").sum();
    const picked = where(less(a, 0), a, b).sum();
    expect(() => grad(less(a, b).cast("float32").sum(), [a])).toThrow(
      "grad: Less bool[3,3] is not differentiable",
    );
    expect(() => grad(rounded.add(picked), [b])).not.toThrow();
  });

  test("nothing is computed for branches that are not asked for", () => {
    const [db] = grad(a.exp().mul(b.tanh()).sum(), [b]);
    const names = topological([db]).map((v) => v.op.name);
    expect(names.filter((n) => n === "Exp")).toHaveLength(1); // the forward one, none for a's gradient
  });
});

describe("stopGradient", () => {
  test("passes the value and not the gradient", async () => {
    const loss = (f: (v: Value) => Value) => f(a.exp()).mul(a).sum();
    const { value, same, da, exp } = await run({
      value: loss(stopGradient),
      same: loss((v) => v),
      da: grad(loss(stopGradient), [a])[0],
      exp: a.exp(),
    });
    expect(value).toEqual(same);
    expect(da).toEqual(exp);
  });

  test("does not hide what is not differentiable from the walker's pruning", () => {
    const loss = stopGradient(less(a, b).cast("float32")).mul(a).sum();
    expect(() => grad(loss, [a, b])).not.toThrow();
  });
});

describe("checkpoint", () => {
  const [w1, w2, s] = [leaf("w1", 3, 3), leaf("w2", 3, 3), leaf("s", 1, 3)];
  const block = (x: Value, w: Value) => silu(x.matmul(w).add(s)).add(x);
  type Wrap = (f: (...xs: Value[]) => Value, ...xs: Value[]) => Value;
  const plain: Wrap = (f, ...xs) => f(...xs);

  const networks: [string, (wrap: Wrap) => Value][] = [
    ["one block", (wrap) => wrap((x) => block(x, w1), a)],
    [
      "a chain",
      (wrap) =>
        wrap(
          (x) => block(x, w2),
          wrap((x) => block(x, w1), a.tanh()),
        ).exp(),
    ],
    ["two inputs", (wrap) => wrap((x, y) => block(x, w1).mul(y), a.tanh(), a.matmul(b))],
    ["the same input twice", (wrap) => wrap((x, y) => x.mul(y.exp()), a.tanh(), a.tanh())],
    [
      "one within another",
      (wrap) => wrap((x) => wrap((y) => block(y, w2), block(x, w1).tanh()).mul(x), a.sigmoid()),
    ],
    [
      "the same block at two places",
      (wrap) =>
        wrap(
          (x) => block(x, w1),
          wrap((x) => block(x, w1), a),
        ),
    ],
    [
      "an input that is also used outside",
      (wrap) => {
        const h = a.tanh();
        return wrap((x) => block(x, w1), h).mul(h);
      },
    ],
    ["an input that the body does not use", (wrap) => wrap((x, _y) => block(x, w1), a, b).add(b)],
    ["parameters as inputs", (wrap) => wrap((x, w) => block(x, w), a, w1)],
    ["a body that does nothing", (wrap) => wrap((x) => x, a.tanh())],
  ];
  test.each(networks)("%s: the same values and gradients", async (_, build) => {
    const losses = [build(checkpoint), build(plain)].map((y) => y.mul(b.sin()).sum());
    expect(losses[0]).not.toBe(losses[1]);
    const { kept, recomputed } = await run({ recomputed: losses[0], kept: losses[1] });
    expect(recomputed.data[0]).toBeCloseTo(Number(kept.data[0]), 5);
    const used = new Set(topological([losses[1]]));
    const wrt = [a, b, w1, w2, s].filter((v) => used.has(v));
    expectClose(await gradients(losses[0], ...wrt), await gradients(losses[1], ...wrt));
  });

  test("the backward pass does not keep the inside of the body", () => {
    const h = a.tanh();
    const inner = h.matmul(w1);
    const y = checkpoint((x) => silu(x.matmul(w1)), h);
    const [dw] = grad(y.sum(), [w1]);
    const forward = new Set(topological([y]));
    expect(forward.has(inner)).toBe(true);
    const shared = topological([dw]).filter((v) => forward.has(v) && !v.op.leaf);
    expect(shared).not.toContain(inner);
    expect(shared).toEqual([h]);
  });

  test("costs the parameters before it nothing", () => {
    const nodes = (n: number) => {
      const layers = Array.from({ length: n }, (_, i) => leaf(`layer${i}`, 3, 3));
      const y = layers.reduce((h, w) => checkpoint((x) => block(x, w), h), a);
      return topological(grad(y.sum(), layers)).length;
    };
    expect(nodes(24) - nodes(12)).toBe(2 * (nodes(12) - nodes(6)));
  });
});
