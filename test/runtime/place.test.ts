/** @file Weights of files reach a session in place, through links, or as bytes; the result is the same. */

import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import process from "node:process";
import { afterEach, beforeEach, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { graph, input } from "../../src/graph/index.ts";
import { linear, rootScope } from "../../src/nn/index.ts";
import { emitOnnx } from "../../src/onnx/index.ts";
import { platform } from "../../src/platform/index.ts";
import { compile } from "../../src/runtime/index.ts";
import { type FileTensor, WeightFiles } from "../../src/runtime/place.ts";
import { floats, Generator } from "../../src/tensor/index.ts";
import { SafetensorsFile, saveSafetensors } from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";

const g = new Generator(1);
const tensors = { "a.weight": g.randn([40, 64]), "a.bias": g.randn([40]), "b.weight": g.randn([3, 40]) };
const x = input("x", "float32", [1, 64]);
const hidden = linear(rootScope("a"), x, { out: 40 });
const net = graph({ y: linear(rootScope("b"), hidden, { out: 3, bias: false }) });
const feed = g.randn([1, 64]);
const cwd = process.cwd();

let weights: Map<string, FileTensor>;
let want: number[];
beforeEach(async () => {
  await saveSafetensors(at("w.safetensors"), tensors);
  await using file = await SafetensorsFile.open(at("w.safetensors"));
  weights = new Map(file.entries);
  await using program = await compile(net, { weights: new Map(Object.entries(tensors)), threads: 1 });
  want = Array.from((await program.run({ x: feed })).y.data, Number);
});
afterEach(() => process.chdir(cwd));

/** Makes a session of these files, takes the files away, and runs it. */
async function runPlaced(files: WeightFiles): Promise<number[]> {
  const { InferenceSession, Tensor } = platform();
  const model = await files.model(emitOnnx(net, files));
  const session = await InferenceSession.create(model as string, { ...files.options, logSeverityLevel: 3 });
  await files[Symbol.asyncDispose]();
  const { y } = await session.run({ x: new Tensor("float32", feed.data, [1, 64]) });
  await session.release();
  return Array.from(y.data as Float32Array);
}

function expectWant(got: readonly number[]): void {
  expect(got.length).toBe(3);
  for (const [i, v] of got.entries()) expect(v).toBeCloseTo(want[i], 4);
}

const links = () => readdirSync(tmpdir()).filter((name) => existsSync(`${tmpdir()}/${name}/model.onnx`));

test.each([
  ["below the working directory", "."],
  ["elsewhere", "other"],
])("%s: linked for as long as the session is made", async (_, folder) => {
  mkdirSync(at(folder), { recursive: true });
  process.chdir(at(folder));
  const before = links();
  const files = await WeightFiles.open(weights, { inMemory: 0, window: 1 });
  expect(files.options).toEqual({});
  expect(typeof (await files.model(emitOnnx(net, files)))).toBe("string");
  expect(links().length).toBe(before.length + 1);
  expectWant(await runPlaced(files));
  expect(links()).toEqual(before);
  expect(existsSync(at("w.safetensors"))).toBe(true);
});

test("files of several folders, one of them below the working directory", async () => {
  await saveSafetensors(at("here/b.safetensors"), { "b.weight": tensors["b.weight"] });
  await using file = await SafetensorsFile.open(at("here/b.safetensors"));
  const both = new Map([...file.entries, ["a.weight", weights.get("a.weight")!] as const]);
  both.set("a.bias", weights.get("a.bias")!);
  process.chdir(at("here"));
  const files = await WeightFiles.open(both, { inMemory: 0, window: 2 ** 20 });
  expect(files.options).toEqual({}); // all in place: ONNX Runtime takes either all from memory, or none
  expectWant(await runPlaced(files));
});

test.each([1, 200, 2 ** 20])("as bytes, in windows of %i", async (window) => {
  const files = await WeightFiles.open(weights, { inMemory: 2 ** 20, window });
  expect(files.options.externalData?.length).toBe(window === 2 ** 20 ? 1 : 3);
  expectWant(await runPlaced(files));
});

test("what lies between weights that are far apart is not read", async () => {
  const between = {
    "a.weight": tensors["a.weight"],
    gap: floats([2 ** 19]),
    "z.weight": tensors["b.weight"],
  };
  await saveSafetensors(at("w.safetensors"), between);
  await using file = await SafetensorsFile.open(at("w.safetensors"));
  const entry = (name: string) => file.entries.get(name)!;
  const files = await WeightFiles.open(
    new Map([
      ["a.weight", entry("a.weight")],
      ["b.weight", entry("z.weight")],
    ]),
  );
  const sizes = files.options.externalData?.map((data) => (data as { data: Uint8Array }).data.length);
  expect(sizes?.length).toBe(2);
  expect(Math.max(...sizes!)).toBeLessThan(2 ** 15);
});

test("compile: the file may go once the program is there", async () => {
  await using program = await compile(net, { weights, threads: 1 });
  rmSync(at("w.safetensors"));
  expectWant(Array.from((await program.run({ x: feed })).y.data, Number));
});

test("a file that got shorter meanwhile is named", async () => {
  await saveSafetensors(at("short.safetensors"), { x: floats([1]) });
  renameSync(at("short.safetensors"), at("w.safetensors"));
  await expect(compile(net, { weights })).rejects.toThrow(/w.safetensors: the file ended while it was read/);
});
