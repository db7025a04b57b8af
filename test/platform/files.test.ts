import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { atomicWrite, removeUnfinished } from "../../src/platform/index.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

test("writes parts in order into folders that it makes, and replaces whole files", async () => {
  const path = join(folder, "a/b.txt");
  await atomicWrite(path, "one ", Buffer.from("two"));
  expect(readFileSync(path, "utf8")).toBe("one two");
  await atomicWrite(path, "three");
  expect(readFileSync(path, "utf8")).toBe("three");
  expect(readdirSync(join(folder, "a"))).toEqual(["b.txt"]);
});

test("leaves nothing behind when it fails", async () => {
  mkdirSync(join(folder, "taken"));
  await expect(atomicWrite(join(folder, "taken"), "over a folder")).rejects.toThrow(/EISDIR|directory/);
  expect(readdirSync(folder)).toEqual(["taken"]);
});

test("what is half written can be removed at once", async () => {
  const path = join(folder, "big.bin");
  async function* interrupted(): AsyncGenerator<string> {
    yield "half";
    expect(readdirSync(folder)).toHaveLength(1);
    removeUnfinished();
    expect(readdirSync(folder)).toEqual([]);
    yield "rest";
  }
  await expect(atomicWrite(path, interrupted() as unknown as string)).rejects.toThrow("ENOENT");
  expect(existsSync(path)).toBe(false);
});
