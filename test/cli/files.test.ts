import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { outputTarget, picturePaths } from "../../src/cli/files.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

test("a named file is taken as it is, numbered for several pictures, its folder made", () => {
  const target = outputTarget(join(folder, "new/apple.png"));
  expect(existsSync(join(folder, "new"))).toBe(true);
  expect(picturePaths(target, "a red apple", [1])).toEqual([join(folder, "new/apple.png")]);
  expect(picturePaths(target, "a red apple", [1, 2])).toEqual([
    join(folder, "new/apple-1.png"),
    join(folder, "new/apple-2.png"),
  ]);
});

test("names made of prompt and seed never meet a file that exists, or each other", () => {
  const target = outputTarget(`${folder}/`);
  writeFileSync(join(folder, "a-red-apple-1.png"), "mine");
  expect(picturePaths(target, "A red apple!", [1, 2, 2])).toEqual(
    ["a-red-apple-1-2.png", "a-red-apple-2.png", "a-red-apple-2-2.png"].map((name) => join(folder, name)),
  );
});

test.each([
  ["../../etc/passwd", "etc-passwd-0.png"],
  ["", "picture-0.png"],
  ["🍎", "picture-0.png"],
  ["りんご 2", "りんご-2-0.png"],
  ["x".repeat(500), `${"x".repeat(40)}-0.png`],
])("prompt %j makes a safe name", (prompt, name) => {
  expect(picturePaths(outputTarget(folder), prompt, [0])).toEqual([join(folder, name)]);
});

test("other endings are refused", () => {
  expect(() => outputTarget(join(folder, "apple.jpg"))).toThrow('end the name in ".png"');
  expect(() => outputTarget(join(folder, "apple"))).toThrow('end the name in ".png"');
});
