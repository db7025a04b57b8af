/** @file A graph in two: what stays from run to run, and what varies. */

import { expect, test } from "vitest";
import {
  type Graph,
  graph,
  hoist,
  input,
  inputsOf,
  nameOf,
  parameter,
  parametersOf,
  verify,
} from "../../src/graph/index.ts";
import { layerNormalization } from "../../src/ops/index.ts";

const ZERO = { kind: "constant", value: 0 } as const;
const x = input("x", "float32", [2, 4]);
const text = input("text", "float32", [2, 4]);
const other = input("other", "float32", [4]);
const [w, v] = ["w", "v"].map((name) => parameter(name, [4, 4], ZERO));

const names = (g: Graph) => inputsOf(g).map(nameOf).sort();
const weights = (g: Graph) => parametersOf(g).map(({ name }) => name);

test("what depends on what stays is made first, once, with the weights that it alone needs", () => {
  const keys = text.matmul(w.transpose([1, 0])).exp();
  const y = x
    .matmul(v.transpose([1, 0]))
    .add(keys)
    .mul(keys)
    .add(text);
  const [first, each, ...none] = hoist(graph({ y }), ["text"], ["x"]).map(verify);
  expect(none).toEqual([]);
  expect([names(first), weights(first)]).toEqual([["text"], ["w"]]);
  expect(Object.values(first.outputs)).toEqual([keys]);
  expect([names(each), weights(each)]).toEqual([[...Object.keys(first.outputs), "text", "x"].sort(), ["v"]]);
  expect(Object.keys(each.outputs)).toEqual(["y"]);
});

test("what depends on weights and other inputs alone is made where it is needed", () => {
  const changed = w.mul(other.exp());
  const y = x.matmul(changed).add(text.matmul(changed));
  const [first, each] = hoist(graph({ y }), ["text"], ["x"]).map(verify);
  expect([names(first), weights(first)]).toEqual([["other", "text"], ["w"]]);
  expect([names(each), weights(each)]).toEqual([[...Object.keys(first.outputs), "other", "x"].sort(), ["w"]]);
  expect(Object.keys(first.outputs)).toHaveLength(1);
});

test("all outputs of a node are made where it is", () => {
  const [scale, bias] = ["scale", "bias"].map((name) => parameter(name, [4], ZERO));
  const normal = layerNormalization(text.exp(), scale, bias);
  const [first, each] = hoist(graph({ y: x.add(normal) }), ["text"], ["x"]).map(verify);
  expect([weights(first), weights(each)]).toEqual([["scale", "bias"], []]);
});

test("a graph in which nothing stays is one", () => {
  const g = graph({ y: x.add(text).exp() });
  expect(hoist(g, ["text"], ["x"])).toEqual([g]);
});

test("an output that does not vary is refused", () => {
  expect(() => hoist(graph({ y: x.exp(), keys: text.exp() }), ["text"], ["x", "t"])).toThrow(
    "hoist: output keys does not depend on x or t",
  );
});
