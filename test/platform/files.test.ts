import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterEach, beforeEach, expect, test } from "vitest";
import { HOST } from "../../src/platform/files.ts";
import {
  atomicWrite,
  removeAbandoned,
  removeTemporaryFolder,
  removeUnfinished,
  temporaryFolder,
} from "../../src/platform/index.ts";

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

test("a temporary folder goes by itself, or with what is half written", async () => {
  const [one, other] = [await temporaryFolder(join(folder, "t-")), await temporaryFolder(join(folder, "t-"))];
  writeFileSync(join(one, "x"), "");
  await removeTemporaryFolder(one);
  expect(readdirSync(folder)).toEqual([basename(other)]);
  removeUnfinished();
  expect(readdirSync(folder)).toEqual([]);
});

test("threads of a process write the same file without meeting", async () => {
  const path = join(folder, "shared");
  const files = new URL("../../src/platform/files.ts", import.meta.url).href;
  const code = `
    const { workerData } = require("node:worker_threads");
    async function* pieces() {
      for (let i = 0; i < 20; i++) yield new Promise((done) => setTimeout(done, 5, Buffer.alloc(1000, workerData)));
    }
    import("tsx/esm/api")
      .then((tsx) => { tsx.register(); return import(${JSON.stringify(files)}); })
      .then(({ atomicWrite }) => atomicWrite(${JSON.stringify(path)}, pieces));`;
  const threads = ["a", "b"].map((workerData) => new Worker(code, { eval: true, workerData }));
  await Promise.all(threads.map((thread) => once(thread, "exit")));
  expect(readFileSync(path, "utf8")).toMatch(/^(a{20000}|b{20000})$/);
  expect(readdirSync(folder)).toEqual(["shared"]);
});

test("what killed processes of this machine left is removed, what others write is not", () => {
  const names = [
    `x.${HOST}-9999999-0-0.tmp`,
    `x.${HOST}-${process.pid}-0-0.tmp`,
    "x.00000000-9999999-0-0.tmp",
  ];
  for (const name of names) writeFileSync(join(folder, name), "");
  removeAbandoned(join(folder, "x"));
  expect(readdirSync(folder).sort()).toEqual(names.slice(1).sort());
});
