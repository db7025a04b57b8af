/** @file Programs: state stays on the device between runs, and wrong tensors are refused by name. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { graph, input } from "../../src/graph/index.ts";
import "../../src/ops/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { floats, ints } from "../../src/tensor/index.ts";
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
