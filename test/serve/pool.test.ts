import { Worker } from "node:worker_threads";
import { afterEach, expect, test } from "vitest";
import { Pool, WorkerDied } from "../../src/serve/pool.ts";

const pools: Pool<string, string, string>[] = [];
afterEach(() => Promise.all(pools.map((pool) => pool.close())));

let started = 0;

/** Threads that say who they are, fail, die or throw, as they are told. */
function pool(size: number): Pool<string, string, string> {
  started = 0;
  const code = `
    const { parentPort, workerData } = require("node:worker_threads");
    parentPort.on("message", (task) => {
      if (task === "close") return parentPort.close();
      if (task === "die") process.exit(3);
      if (task === "throw") throw new Error("out of luck");
      if (task === "fail") return parentPort.postMessage({ error: "no" });
      parentPort.postMessage({ note: "begun " + task });
      parentPort.postMessage({ result: "thread " + workerData });
    });`;
  const made = new Pool<string, string, string>(
    size,
    () => new Worker(code, { eval: true, workerData: ++started }),
  );
  pools.push(made);
  return made;
}

test("a task gives notes and a result; threads start when they are needed", async () => {
  const one = pool(4);
  const notes: string[] = [];
  expect(await one.run("a", { about: "x", onNote: (note) => notes.push(note) })).toBe("thread 1");
  expect(notes).toEqual(["begun a"]);
  expect([started, one.free]).toEqual([1, 4]);
});

test("tasks about the same go to the same thread", async () => {
  const two = pool(2);
  const first = await Promise.all(["x", "y"].map((about) => two.run("a", { about })));
  expect(new Set(first).size).toBe(2);
  expect(await Promise.all(["y", "x"].map((about) => two.run("a", { about })))).toEqual(first.reverse());
});

test("a task that fails leaves the thread alive", async () => {
  const one = pool(1);
  await expect(one.run("fail", { about: "" })).rejects.toThrow("no");
  expect(await one.run("a", { about: "" })).toBe("thread 1");
  expect(one.deaths).toBe(0);
});

test.each(["die", "throw"])("a thread that ends is replaced: %s", async (how) => {
  const one = pool(1);
  await expect(one.run(how, { about: "" })).rejects.toThrow(WorkerDied);
  expect(await one.run("a", { about: "" })).toBe("thread 2");
  expect(one.deaths).toBe(1);
});

test("a thread that cannot be started, or a task that cannot be sent, leaves the place free", async () => {
  const none = new Pool<unknown, string, string>(1, () => {
    throw new Error("no threads");
  });
  await expect(none.run("a", { about: "" })).rejects.toThrow("no threads");
  expect(none.free).toBe(1);
  const one = pool(1) as Pool<unknown, string, string>;
  await expect(one.run(() => {}, { about: "" })).rejects.toThrow(/could not be cloned/);
  expect(await one.run("a", { about: "" })).toBe("thread 1");
});
