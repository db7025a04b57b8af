/** @file Which files of int8 weights are used again: those that are whole, and of these sources and choices. */

import { copyFileSync, readFileSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { beforeEach, describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { type CacheKey, openCache, writeCache } from "../../src/quantize/cache.ts";
import type { CalibratedPart } from "../../src/quantize/calibrate.ts";
import { floats } from "../../src/tensor/index.ts";
import { loadSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";

const SNR = new Map([
  ["a.weight", 31.5],
  ["b.weight", Number.NaN],
]);
const choices = { bits: 7, minimum: 4, threshold: 22 };
let key: CacheKey;

async function* parts(): AsyncGenerator<CalibratedPart, string> {
  const scale = floats([2], [0.5, 0.25]);
  yield {
    tensors: new Map([["a.scale", scale]]),
    snr: new Map([...SNR].slice(0, 1)),
  };
  // what two parts need is written once
  yield {
    tensors: new Map([
      ["a.scale", scale],
      ["b.weight", floats([1], [3])],
    ]),
    snr: new Map([...SNR].slice(1)),
  };
  return "done";
}

beforeEach(async () => {
  key = { path: at("int8.safetensors"), sources: [put("weights", "1234")], choices };
  expect(await writeCache(key, parts())).toEqual({ snr: SNR, result: "done" });
});

test("a file is found with what its layers were measured at, and all its tensors", async () => {
  expect(await openCache(key)).toEqual({ snr: SNR });
  const { tensors } = await loadSafetensors(key.path);
  expect(Object.keys(tensors).sort()).toEqual(["a.scale", "b.weight"]);
  expect(tensors["a.scale"]).toMatchObject({ dtype: "float32", shape: [2] });
});

test("a copy is found, and not read through again", async () => {
  const { mtimeMs } = statSync(key.path);
  copyFileSync(key.path, at("copy"));
  copyFileSync(at("copy"), key.path);
  expect(await openCache(key)).toEqual({ snr: SNR });
  expect(statSync(key.path).mtimeMs).toBe(mtimeMs);
});

test("sources that were touched are still the same", async () => {
  utimesSync(at("weights"), 1, 1);
  expect(await openCache(key)).toEqual({ snr: SNR });
});

describe("not used:", () => {
  test("what is not there", async () => {
    expect(await openCache({ ...key, path: at("none") })).toEqual({ reason: "missing" });
  });

  test.each<[string, () => unknown]>([
    ["cut off", () => truncateSync(key.path, statSync(key.path).size - 1)],
    ["something else", () => writeFileSync(key.path, "not weights")],
    [
      "changed in one bit",
      () => {
        const bytes = readFileSync(key.path);
        bytes[bytes.length - 1] ^= 1;
        writeFileSync(key.path, bytes);
      },
    ],
  ])("what is %s", async (_, spoil) => {
    spoil();
    expect(await openCache(key)).toEqual({ reason: "damaged" });
  });

  test.each<[string, () => Partial<CacheKey> | string]>([
    ["other content of the source", () => put("weights", "4321")],
    ["more content of the source", () => put("weights", "12345")],
    ["one source more", () => ({ sources: [...key.sources, put("more", "")] })],
    ["other bits", () => ({ choices: { ...choices, bits: 8 } })],
    ["another minimum", () => ({ choices: { ...choices, minimum: 5 } })],
    ["another threshold", () => ({ choices: { ...choices, threshold: 23 } })],
  ])("what is of %s", async (_, change) => {
    const changed = change();
    const asked = typeof changed === "string" ? key : { ...key, ...changed };
    if (typeof changed === "string") utimesSync(changed, 1, 1);
    expect(await openCache(asked)).toEqual({ reason: "stale" });
  });
});
