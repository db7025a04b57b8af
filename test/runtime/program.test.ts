/** @file Programs: state stays on the device between runs, and wrong tensors are refused by name. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { type Dim, graph, input, parameter, symbol } from "../../src/graph/index.ts";
import {
  attention,
  groupNormalization,
  layerNormalization,
  project,
  resizeNearest,
} from "../../src/ops/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, Generator, type HostTensor, ints } from "../../src/tensor/index.ts";
import { runtimes } from "../contract/runtimes.ts";

const count = input("count", "float32", [4]);
const by = input("by", "float32", [4]);
const counter = graph({ next: count.add(by), doubled: count.mul(2) });
const state = { next: "count" };
const one = floats([4], [1, 2, 3, 4]);

describe.each(runtimes)("$name", ({ device, skip }) => {
  test.skipIf(skip)("state goes from run to run, and is read and replaced between them", async () => {
    await using program = await compile(counter, { device, state, threads: 1 });
    expect(program.stateNames).toEqual(["count"]);
    for (const expected of [0, 2, 4]) {
      const { doubled, ...others } = await program.run({ by: one });
      expect(doubled.data[0]).toBe(expected);
      expect(others).toEqual({}); // state is not an output
    }
    const read = await program.get("count");
    expect(read).toEqual(floats([4], [3, 6, 9, 12]));
    read.data[0] = 99; // a copy
    expect((await program.get("count")).data[0]).toBe(3);

    const given = floats([4], [10, 0, 0, 0]);
    program.set("count", given);
    given.data[0] = 99; // copied
    expect((await program.run({ by: one })).doubled.data[0]).toBe(20);
    expect((await program.get("count")).data[0]).toBe(11);
  });
});

/** Operators whose ONNX form depends on whether sizes are known. */
function normsAndAttention(B: Dim, H: Dim, W: Dim) {
  const x = input("x", "float32", [B, 4, H, W]);
  const [scale, bias] = ["scale", "bias"].map((name) => parameter(name, [4], { kind: "constant", value: 0 }));
  const rows = groupNormalization(x, scale, bias, { groups: 2 }).reshape([B, 4, -1]).transpose([0, 2, 1]);
  const y = attention(layerNormalization(rows, scale, bias), rows, rows, { heads: 2 });
  const w = parameter("w", [6, 4], { kind: "constant", value: 0 });
  return graph({
    y,
    projected: project(y, w),
    shifted: project(y, w.slice(0, 0, 4), bias),
    larger: resizeNearest(x, [6, 8]),
  });
}

describe.each(runtimes)("open sizes, $name", ({ device, skip, tolerance }) => {
  test.skipIf(skip)("one program for all sizes does what programs of each size do", async () => {
    const g = new Generator(0);
    const weights = new Map<string, HostTensor>([
      ["scale", g.randn([4])],
      ["bias", g.randn([4])],
      ["w", g.randn([6, 4])],
    ]);
    const [B, H, W] = ["B", "H", "W"].map(symbol);
    await using open = await compile(normsAndAttention(B, H, W), { device, weights, threads: 1 });
    for (const [b, h, w] of [
      [1, 3, 4],
      [2, 2, 2],
    ]) {
      const feeds = { x: g.randn([b, 4, h, w]) };
      await using closed = await compile(normsAndAttention(b, h, w), { weights, threads: 1 });
      const [actual, expected] = [await open.run(feeds), await closed.run(feeds)];
      for (const [name, { shape, data }] of Object.entries(expected)) {
        expect(actual[name].shape).toEqual(shape);
        const values = Array.from(data, Number);
        const error = Math.max(...values.map((v, i) => Math.abs(v - Number(actual[name].data[i]))));
        expect(error / Math.max(...values.map(Math.abs)), name).toBeLessThan(tolerance);
      }
    }
  });
});

test.skipIf(process.env.FEWSTEP_GPU)("a device that is not there", async () => {
  const broken = graph({ y: count.add(by) });
  await expect(compile(broken, { device: "cuda" })).rejects.toThrow("device cuda cannot be used");
});

describe("refused by name", () => {
  test.each([
    ["an unknown input", { by: one, extra: one }, "extra is not an input; inputs are"],
    ["a missing input", {}, "input by is missing"],
    ["another shape", { by: floats([3]) }, "input by is float32[4], got float32[3]"],
    ["another dtype", { by: ints([4], [1, 2, 3, 4]) }, "input by is float32[4], got int64[4]"],
  ])("%s", async (_, feeds, message) => {
    await using program = await compile(counter, { state, threads: 1 });
    await expect(program.run(feeds as Record<string, typeof one>)).rejects.toThrow(message);
  });

  test("state that does not fit its input", async () => {
    const wide = graph({ next: count.add(by).unsqueeze(0) });
    await expect(compile(wide, { state })).rejects.toThrow("state next → count: float32[1,4] does not fit");
    await using program = await compile(counter, { state, threads: 1 });
    expect(() => program.set("count", floats([5]))).toThrow("input count is float32[4], got float32[5]");
    await expect(program.get("by")).rejects.toThrow("by is not state");
  });
});
