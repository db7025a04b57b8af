import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import { Worker } from "node:worker_threads";
import { expect, test } from "vitest";
import { HOST } from "../../src/platform/files.ts";
import {
  atomicWrite,
  removeAbandoned,
  removeTemporaryFolder,
  removeUnfinished,
  temporaryFolder,
} from "../../src/platform/index.ts";
import { at, put } from "../data/temporary.ts";

test("writes parts in order into folders that it makes, and replaces whole files", async () => {
  const path = at("a/b.txt");
  await atomicWrite(path, "one ", Buffer.from("two"));
  expect(readFileSync(path, "utf8")).toBe("one two");
  await atomicWrite(path, "three");
  expect(readFileSync(path, "utf8")).toBe("three");
  expect(readdirSync(at("a"))).toEqual(["b.txt"]);
});

test("leaves nothing behind when it fails", async () => {
  mkdirSync(at("taken"));
  await expect(atomicWrite(at("taken"), "over a folder")).rejects.toThrow(/EISDIR|directory/);
  expect(readdirSync(at())).toEqual(["taken"]);
});

test("what is half written can be removed at once", async () => {
  const path = at("big.bin");
  async function* interrupted(): AsyncGenerator<string> {
    yield "half";
    expect(readdirSync(at())).toHaveLength(1);
    removeUnfinished();
    expect(readdirSync(at())).toEqual([]);
    yield "rest";
  }
  await expect(atomicWrite(path, interrupted() as unknown as string)).rejects.toThrow("ENOENT");
  expect(existsSync(path)).toBe(false);
});

test("a temporary folder goes by itself, or with what is half written", async () => {
  const [one, other] = [await temporaryFolder(at("t-")), await temporaryFolder(at("t-"))];
  put(`${basename(one)}/x`, "");
  await removeTemporaryFolder(one);
  expect(readdirSync(at())).toEqual([basename(other)]);
  removeUnfinished();
  expect(readdirSync(at())).toEqual([]);
});

test("threads of a process write the same file without meeting", async () => {
  const path = at("shared");
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
  expect(readdirSync(at())).toEqual(["shared"]);
});

test("what killed processes of this machine left is removed, what others write is not", () => {
  const names = [
    `x.${HOST}-9999999-0-0.tmp`,
    `x.${HOST}-${process.pid}-0-0.tmp`,
    "x.00000000-9999999-0-0.tmp",
  ];
  for (const name of names) put(name, "");
  removeAbandoned(at("x"));
  expect(readdirSync(at()).sort()).toEqual(names.slice(1).sort());
});
