/** @file Jobs before a studio that does what the test says. */

import { expect, onTestFinished, test, vi } from "vitest";
import type { JobEvent, Made, PictureRequest } from "../../src/serve/jobs.ts";
import { LocalJobs, type LocalJobsOptions, type Studio } from "../../src/serve/local.ts";
import { WorkerDied } from "../../src/serve/pool.ts";
import type { Stop } from "../../src/serve/stop.ts";

const MADE: Made = {
  pictures: [],
  warnings: [],
  seconds: { load: 0, encode: 0, denoise: 0, decode: 0 },
};

function request(prompt: string, more: Partial<PictureRequest> = {}): PictureRequest {
  return { prompt, negativePrompt: "", loras: [], batch: 1, seed: 1, previews: 0, priority: 0, ...more };
}

/** One at a time; the test ends each by hand. */
class HandStudio implements Studio {
  readonly size = 1;
  readonly deaths = 0;
  readonly begun: string[] = [];
  free = 1;
  stop?: Stop;
  finish: (how?: Error) => Promise<void> = async () => {};

  check(): void {}

  paint({ prompt }: PictureRequest, { stop }: { stop: Stop }): Promise<Made> {
    this.begun.push(prompt);
    this.free = 0;
    this.stop = stop;
    return new Promise((resolve, reject) => {
      this.finish = async (how) => {
        this.free = 1;
        if (how) reject(how);
        else resolve(MADE);
        await new Promise(setImmediate); // what follows from it has happened
      };
    });
  }
}

function setup(options: Partial<LocalJobsOptions> = {}): { studio: HandStudio; jobs: LocalJobs } {
  const studio = new HandStudio();
  const history = { jobs: 3, bytes: 1e6 };
  return {
    studio,
    jobs: new LocalJobs(studio, {
      onEnd() {},
      onError() {},
      queueLimit: 3,
      timeLimit: 100,
      history,
      ...options,
    }),
  };
}

const never = new AbortController().signal;

test("waiting jobs are begun by priority, and told how many are before them", async () => {
  const { studio, jobs } = setup();
  await jobs.submit(request("first"));
  const low = await jobs.submit(request("low"));
  const told = collect(jobs, low.id);
  await jobs.submit(request("high", { priority: 1 }));
  for (let i = 0; i < 3; i++) await studio.finish();
  expect(studio.begun).toEqual(["first", "high", "low"]);
  expect(await told).toEqual(["queued 0", "queued 1", "queued 0", "started", "completed"]);
});

async function collect(jobs: LocalJobs, id: string): Promise<string[]> {
  const told: string[] = [];
  const text = (event: JobEvent): string =>
    event.type === "queued" ? `queued ${event.position}` : event.type;
  for await (const event of jobs.events(id, never)) told.push(text(event));
  return told;
}

test("a full queue refuses, and says when to come again", async () => {
  const { studio, jobs } = setup();
  for (const prompt of ["1", "2", "3", "4"]) await jobs.submit(request(prompt));
  await expect(jobs.submit(request("5"))).rejects.toMatchObject({ reason: "queue_full", retryAfter: 4 });
  await studio.finish();
  await jobs.submit(request("6"));
});

test("a cancelled job that waits is never begun", async () => {
  const { studio, jobs } = setup();
  await jobs.submit(request("first"));
  const { id } = await jobs.submit(request("dropped"));
  await jobs.submit(request("last"));
  expect(await jobs.cancel(id)).toMatchObject({ status: "cancelled" });
  await studio.finish();
  await studio.finish();
  expect(studio.begun).toEqual(["first", "last"]);
  expect(await jobs.cancel("no such")).toBeUndefined();
});

test("a cancelled job that runs is stopped, and what it still makes is dropped", async () => {
  const { studio, jobs } = setup();
  const { id } = await jobs.submit(request("a"));
  await jobs.submit(request("b"));
  await jobs.cancel(id);
  expect(studio.stop?.requested).toBe(true);
  expect(studio.begun).toEqual(["a"]); // the thread is not free before it says so
  await studio.finish();
  expect(studio.begun).toEqual(["a", "b"]);
  const job = await jobs.get(id);
  expect([job?.status, job?.made]).toEqual(["cancelled", undefined]);
});

test("a job that works for too long fails", async () => {
  const { studio, jobs } = setup();
  const { id } = await jobs.submit(request("a", { timeLimit: 0.001 }));
  expect(await collect(jobs, id)).toEqual(["started", "failed"]);
  expect(studio.stop?.requested).toBe(true);
  expect((await jobs.get(id))?.error).toEqual({
    reason: "time_limit",
    message: "the job took more than 0.001 s, its time limit",
  });
});

test("a time limit beyond what timers take is no limit of a millisecond", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => void vi.useRealTimers());
  const { jobs } = setup({ timeLimit: Number.POSITIVE_INFINITY });
  const { id } = await jobs.submit(request("a"));
  vi.advanceTimersByTime(1e9);
  expect(await jobs.get(id)).toMatchObject({ status: "running" });
});

test("a job whose worker dies is begun once more, before all others", async () => {
  const { studio, jobs } = setup();
  const { id } = await jobs.submit(request("a"));
  await jobs.submit(request("b", { priority: 10 }));
  await studio.finish(new WorkerDied("died"));
  expect(studio.begun).toEqual(["a", "a"]);
  await studio.finish();
  expect(await jobs.get(id)).toMatchObject({ status: "completed" });
});

test("a job whose worker dies twice fails, and the next one is begun", async () => {
  const errors: unknown[] = [];
  const { studio, jobs } = setup({ onError: (error) => errors.push(error) });
  const { id } = await jobs.submit(request("a"));
  await jobs.submit(request("b"));
  const cause = new Error("out of memory");
  for (let i = 0; i < 2; i++) await studio.finish(new WorkerDied("died", { cause }));
  expect(await jobs.get(id)).toMatchObject({ status: "failed", error: { reason: "worker_died" } });
  expect([studio.begun, errors]).toEqual([["a", "a", "b"], [cause]]);
});

test("of ended jobs only the last are remembered", async () => {
  const { studio, jobs } = setup();
  for (const prompt of ["1", "2", "3", "4", "5"]) {
    await jobs.submit(request(prompt));
    await studio.finish();
  }
  const known = await jobs.list();
  expect(known.map((job) => job.request.prompt).sort()).toEqual(["3", "4", "5"]);
});

test("closing drops what waits, and what runs when its time is over", async () => {
  const { jobs } = setup();
  const running = await jobs.submit(request("running"));
  const waiting = await jobs.submit(request("waiting"));
  await jobs.close(0.001);
  for (const { id } of [running, waiting])
    expect(await jobs.get(id)).toMatchObject({ status: "failed", error: { reason: "shutting_down" } });
  await expect(jobs.submit(request("late"))).rejects.toMatchObject({ reason: "shutting_down" });
});

test("closing waits for what runs", async () => {
  const { studio, jobs } = setup();
  const { id } = await jobs.submit(request("running"));
  const closed = jobs.close(1000);
  await studio.finish();
  await closed;
  expect(await jobs.get(id)).toMatchObject({ status: "completed" });
});
