/** @file A program for a loop: what stays is computed once, and again when it is another. */

import { expect, test } from "vitest";
import "../../src/platform/node.ts";
import { graph, hoist, input, parameter } from "../../src/graph/index.ts";
import "../../src/ops/index.ts";
import { compileLoop } from "../../src/runtime/index.ts";
import { floats, type HostTensor } from "../../src/tensor/index.ts";

const [x, text] = ["x", "text"].map((name) => input(name, "float32", [2]));
const [w, v] = ["w", "v"].map((name) => parameter(name, [2], { kind: "constant", value: 0 }));
const weights = new Map<string, HostTensor>([
  ["w", floats([2], [10, 10])],
  ["v", floats([2], [1, 2])],
  ["unused", floats([1], [0])],
]);
const parts = hoist(graph({ y: x.mul(v).add(text.mul(w)) }), ["text"], ["x"]);
const told = (a: number) => floats([2], [a, a]);

test("tensors that stay are looked at once, two sets of them", async () => {
  await using program = await compileLoop(parts, { weights });
  const run = async (x: number, text: HostTensor) => [...(await program.run({ x: told(x), text })).y.data];
  const [one, two, three] = [told(1), told(2), told(3)];
  expect(await run(1, one)).toEqual([11, 12]);
  one.data[0] = 99; // never to be done: shows that it is not read again
  expect(await run(2, one)).toEqual([12, 14]);
  expect(await run(1, two)).toEqual([21, 22]);
  expect(await run(1, one)).toEqual([11, 12]);
  expect(await run(1, three)).toEqual([31, 32]);
  expect(await run(1, two)).toEqual([21, 22]);
  expect(await run(1, one)).toEqual([991, 12]);
});

test("runs at the same time have what they were given", async () => {
  await using program = await compileLoop(parts, { weights });
  const given = [1, 2, 3, 4].map(told);
  const runs = given.map((text) => program.run({ x: told(0), text }));
  expect((await Promise.all(runs)).map(({ y }) => y.data[0])).toEqual([10, 20, 30, 40]);
});

test("inputs that are missing or unknown are named", async () => {
  await using program = await compileLoop(parts, { weights });
  await program.run({ x: told(1), text: told(1) });
  await expect(program.run({ x: told(1) })).rejects.toThrow("input text is missing");
  await expect(program.run({ text: told(1) })).rejects.toThrow("input x is missing");
  await expect(program.run({ x: told(1), text: told(1), z: told(1) })).rejects.toThrow("z is not an input");
});

test("a graph in one part is a program as others are", async () => {
  await using program = await compileLoop(hoist(graph({ y: x.add(text) }), ["text"], ["x"]));
  expect([...(await program.run({ x: told(1), text: told(2) })).y.data]).toEqual([3, 3]);
});
