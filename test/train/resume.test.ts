/** @file A run that is killed, wherever that hits it, ends as one that was not. */

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { castTensor, type HostTensor } from "../../src/tensor/index.ts";
import { type FitOptions, type Job, type Progress, fit as start } from "../../src/train/index.ts";
import { loadSafetensors } from "../../src/weights/index.ts";
import { tinyFit } from "./tiny.ts";

const STEPS = 12;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Runs a job to its end; gives the steps it did and the averaged weights. */
async function finish(
  job: Job,
  options: FitOptions,
  each: (p: Progress) => void = () => {},
): Promise<{ steps: Progress[]; weights: Record<string, HostTensor> }> {
  const steps: Progress[] = [];
  const run = start(job, options);
  for (;;) {
    const { done, value } = await run.next();
    if (done) return { steps, weights: value };
    steps.push(value);
    each(value);
  }
}

/** Runs `killable.ts`; `kill` is asked after each step. Gives the steps it printed and the signal it died of. */
function child(
  out: string,
  {
    replicas = 1,
    at = "",
    kill = () => false,
  }: { replicas?: number; at?: string; kill?: (step: number) => boolean },
): Promise<{ steps: number[]; signal: string | null; stderr: string }> {
  const script = fileURLToPath(new URL("killable.ts", import.meta.url));
  const args = ["--import", import.meta.resolve("tsx"), script, out, String(replicas), ...(at ? [at] : [])];
  const run = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  let [stdout, stderr, seen] = ["", "", 0];
  run.stderr.on("data", (data) => (stderr += data));
  run.stdout.on("data", (data) => {
    stdout += data;
    const lines = stdout.split("\n");
    for (; seen < lines.length - 1; seen++) if (kill(Number(lines[seen]))) run.kill("SIGKILL");
  });
  return new Promise((resolve, reject) => {
    run.on("error", reject);
    run.on("close", (_, signal) =>
      resolve({ steps: stdout.split("\n").slice(0, -1).map(Number), signal, stderr }),
    );
  });
}

interface Row {
  step: number;
  loss: number;
  l1: number;
  grad_norm: number;
  learning_rate: number;
}

/** log.jsonl without the speed, which no two runs share. */
function log(out: string): Row[] {
  const lines = readFileSync(join(out, "log.jsonl"), "utf8").split("\n");
  expect(lines.pop()).toBe("");
  return lines.map((line) => {
    const { pictures_per_second, ...row } = JSON.parse(line);
    expect(pictures_per_second).toBeGreaterThan(0);
    return row;
  });
}

/** Steps that TensorBoard shows, file by file in order of name; a session that starts removes what it repeats. */
function boardSteps(out: string): number[] {
  let steps: number[] = [];
  for (const name of readdirSync(out)
    .filter((n) => n.includes("tfevents"))
    .sort()) {
    const bytes = readFileSync(join(out, name));
    for (let at = 0; at + 12 <= bytes.length; ) {
      const length = Number(bytes.readBigUInt64LE(at));
      if (at + length + 16 > bytes.length) break; // a record that was cut off
      const [step, summary, starts] = event(bytes.subarray(at + 12, at + 12 + length));
      if (starts) steps = steps.filter((s) => s < step);
      if (summary) steps.push(step);
      at += length + 16;
    }
  }
  return steps;
}

/** Step of an Event message, whether it has a summary (field 5), and whether a session starts (field 7). */
function event(bytes: Buffer): [step: number, summary: boolean, starts: boolean] {
  let [at, step, summary, starts] = [0, 0, false, false];
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const b = bytes[at++];
      value += (b & 127) * 2 ** shift;
      if (b < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    if (tag === ((1 << 3) | 1)) at += 8;
    else if (tag === 2 << 3) step = varint();
    else {
      const length = varint();
      if (tag >> 3 === 5) summary = true;
      if (tag >> 3 === 7) starts = bytes.subarray(at, at + length).equals(Buffer.of(8, 1));
      at += length;
    }
  }
  return [step, summary, starts];
}

/** Steps that the checkpoint has seen; 0 when there is none. It must be whole. */
async function saved(out: string): Promise<number> {
  const file = join(out, "checkpoint.safetensors");
  return existsSync(file) ? Number((await loadSafetensors(file)).metadata.step) : 0;
}

async function checkpoint(out: string): Promise<Record<string, HostTensor>> {
  return { ...(await loadSafetensors(join(out, "checkpoint.safetensors"))).tensors };
}

/** Runs that nobody disturbed, by number of replicas. */
const whole: Record<number, { rows: Row[]; tensors: Record<string, HostTensor> }> = {};
beforeAll(async () => {
  for (const replicas of [1, 2]) {
    const out = mkdtempSync(join(tmpdir(), "fewstep-whole-"));
    afterAll(() => rmSync(out, { recursive: true }));
    await finish(...tinyFit(out, { replicas }));
    whole[replicas] = { rows: log(out), tensors: await checkpoint(out) };
  }
});

async function expectWhole(out: string, replicas: number): Promise<void> {
  expect(log(out)).toEqual(whole[replicas].rows);
  expect(await checkpoint(out)).toEqual(whole[replicas].tensors);
  expect(boardSteps(out)).toEqual(whole[replicas].rows.map((r) => r.step));
  expect(
    readdirSync(out)
      .filter((n) => !n.includes("tfevents"))
      .sort(),
  ).toEqual(["checkpoint.safetensors", "log.jsonl"]);
}

test("an undisturbed run logs every step once and learns", () => {
  const { rows, tensors } = whole[1];
  expect(rows.map((r) => r.step)).toEqual(Array.from({ length: STEPS }, (_, i) => i));
  expect(rows[STEPS - 1].loss).toBeLessThan(rows[0].loss);
  expect(whole[2].rows[0].loss).not.toBe(rows[0].loss);
  const names = ["", "exp_avg.", "exp_avg_sq.", "ema."].map((s) => `${s}conv.weight`);
  for (const n of names) expect(new Set(names.map((m) => String(tensors[m].data))), n).toHaveLength(4);
});

describe("killed", () => {
  /** Where one run after the other dies, and the step that its checkpoint is at then. */
  const places: [string, number][] = [
    ["write:1", 0], // the first checkpoint ever
    ["rename:2", 1],
    ["renamed:2", 3],
    ["log:2", 4],
    ["logged:1", 4],
    ["event:2", 5],
    ["relog:1", 5],
    ["write:30", 6], // in the second checkpoint of this run
    ["renamed:1", 7],
  ];

  test("in the middle of its own work, nine times", async () => {
    for (const [at, step] of places) {
      const { signal, stderr } = await child(folder, { at });
      expect(signal, `${at}: ${stderr}`).toBe("SIGKILL");
      expect(await saved(folder), at).toBe(step);
    }
    const { signal, steps, stderr } = await child(folder, {});
    expect({ signal, stderr }).toEqual({ signal: null, stderr: "" });
    expect(steps).toEqual([8, 9, 10, 11, 12]);
    await expectWhole(folder, 1);
  });

  test("from outside, with two replicas", async () => {
    for (const after of [2, 5, 9]) {
      const { signal, stderr } = await child(folder, { replicas: 2, kill: (step) => step === after });
      expect(signal, stderr).toBe("SIGKILL");
      expect(await saved(folder)).toBeGreaterThanOrEqual(after);
    }
    await finish(...tinyFit(folder, { replicas: 2 }));
    await expectWhole(folder, 2);
  });
});

test("between rare checkpoints: the steps since the last are done again and logged once", async () => {
  const [job, options] = tinyFit(folder);
  const rare = { ...options, checkpointMinutes: 1000 };
  const stop = new AbortController();
  await finish(job, { ...rare, signal: stop.signal }, ({ step }) => step === 4 && stop.abort());
  expect(await saved(folder)).toBe(4);
  const run = start(job, rare);
  for (let i = 0; i < 4; i++) await run.next();
  await run.return({}); // dies without a word
  expect(log(folder).map((r) => r.step)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  expect(await saved(folder)).toBe(4);
  const { steps } = await finish(job, rare);
  expect(steps.map((p) => p.step)).toEqual([5, 6, 7, 8, 9, 10, 11, 12]);
  await expectWhole(folder, 1);
});

test("a finished run is finished: nothing is fetched, and the weights are the same", async () => {
  const [job, options] = tinyFit(folder, { steps: 3 });
  const first = await finish(job, options);
  const feeds = () => Promise.reject(new Error("no batch is needed"));
  const again = await finish({ ...job, feeds }, options);
  expect(again.steps).toEqual([]);
  expect(again.weights).toEqual(first.weights);
  expect(Object.keys(first.weights).sort()).toEqual([
    "conv.bias",
    "conv.weight",
    "norm.bias",
    "norm.weight",
    "out.bias",
    "out.weight",
  ]);
});

test("another recipe's checkpoint is refused and stays", async () => {
  const [job, options] = tinyFit(folder, { steps: 2 });
  await finish(job, options);
  const before = readFileSync(join(folder, "checkpoint.safetensors"));
  const rows = log(folder);
  await expect(finish(job, { ...options, fingerprint: "other" })).rejects.toThrow(
    `${folder}/checkpoint.safetensors belongs to another recipe: give a new output folder, or the recipe it was made with`,
  );
  expect(readFileSync(join(folder, "checkpoint.safetensors"))).toEqual(before);
  expect(log(folder)).toEqual(rows);
});

test("a damaged checkpoint is named", async () => {
  const [job, options] = tinyFit(folder, { steps: 2 });
  await finish(job, options);
  const file = join(folder, "checkpoint.safetensors");
  writeFileSync(file, readFileSync(file).subarray(0, -10));
  await expect(finish(job, options)).rejects.toThrow(/^checkpoint\.safetensors: truncated/);
});

describe("a loss that is not a number", () => {
  const poison = (job: Job, from: number): Job => ({
    ...job,
    feeds: async (at) => {
      const feeds = await job.feeds(at);
      if (at.step >= from) (feeds.y.data as Float32Array)[0] = Number.NaN;
      return feeds;
    },
  });

  test("stops the run and keeps the last checkpoint, from which it goes on", async () => {
    const [job, options] = tinyFit(folder);
    await expect(finish(poison(job, 3), options)).rejects.toThrow(
      `training diverged at step 3: loss NaN, l1 NaN, grad_norm NaN; the last checkpoint is ${folder}/checkpoint.safetensors; delete it, or give a new output folder, and lower the learning rate`,
    );
    expect(await saved(folder)).toBe(3);
    expect(log(folder)).toEqual(whole[1].rows.slice(0, 3));
    await finish(job, options);
    await expectWhole(folder, 1);
  });

  test("before the first checkpoint says that there is none", async () => {
    const [job, options] = tinyFit(folder);
    await expect(finish(poison(job, 0), options)).rejects.toThrow("no checkpoint was written yet");
    expect(readdirSync(folder)).not.toContain("checkpoint.safetensors");
  });
});

test("what watches a run counts on where it stopped, and stops it at the same step again", async () => {
  const [job, options] = tinyFit(folder);
  const watch: FitOptions["watch"] = (step, { loss }, before) => {
    expect(loss).toBeGreaterThan(0);
    if (before === 5) throw new Error(`five steps before step ${step}`);
    return before + 1;
  };
  const stop = new AbortController();
  await finish(job, { ...options, watch, signal: stop.signal }, ({ step }) => step === 2 && stop.abort());
  for (let i = 0; i < 2; i++) {
    await expect(finish(job, { ...options, watch })).rejects.toThrow("five steps before step 6");
    expect(await saved(folder)).toBe(5);
  }
  await finish(job, options);
  await expectWhole(folder, 1);
});

test("a batch that cannot be had ends the run with its own message", async () => {
  const [job, options] = tinyFit(folder);
  const feeds: Job["feeds"] = (at) =>
    at.step === 2 ? Promise.reject(new Error("picture 17 is gone")) : job.feeds(at);
  await expect(finish({ ...job, feeds }, options)).rejects.toThrow("picture 17 is gone");
  expect(await saved(folder)).toBe(2);
});

test("previews get the averaged weights when they are due", async () => {
  const [job, options] = tinyFit(folder, { steps: 5 });
  const seen: [number, Record<string, HostTensor>][] = [];
  const preview: Job["preview"] = async (weights, step) => void seen.push([step, weights]);
  const { weights } = await finish({ ...job, preview }, { ...options, sampleEvery: 2 });
  expect(seen.map(([step]) => step)).toEqual([2, 4, 5]);
  expect(seen[2][1]).toEqual(weights);
  expect(seen[1][1]).not.toEqual(weights);
});

test("weights to start from may be stored in half precision", async () => {
  const [job, options] = tinyFit(join(folder, "first"), { steps: 3 });
  const { weights } = await finish(job, options);
  const half = Object.fromEntries(Object.entries(weights).map(([k, t]) => [k, castTensor(t, "float16")]));
  const rounded = Object.fromEntries(Object.entries(half).map(([k, t]) => [k, castTensor(t, "float32")]));
  const losses: number[][] = [];
  for (const [i, start] of [half, rounded].entries()) {
    const [next, nextOptions] = tinyFit(join(folder, `${i}`), { steps: 2 });
    losses.push((await finish({ ...next, start }, nextOptions)).steps.map((step) => step.loss));
  }
  expect(losses[0]).toEqual(losses[1]);
});
