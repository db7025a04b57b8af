/**
 * @file Threads that do one task at a time each. A task may tell how it goes; a thread that dies gives its task back
 * and is replaced when the next one comes. Knows nothing of pictures.
 */

import type { Worker } from "node:worker_threads";
import { endThread } from "../platform/index.ts";

/** What a thread says while it has a task; the last is a result or an error. */
export type Reply<Note, Result> = { note: Note } | { result: Result } | { error: string };

/** The thread ended with a task in hand. */
export class WorkerDied extends Error {
  override name = "WorkerDied";
}

interface Run<Note, Result> {
  onNote(note: Note): void;
  resolve(result: Result): void;
  reject(error: Error): void;
}

interface Slot<Note, Result> {
  worker?: Worker;
  run?: Run<Note, Result>;
  /** What its last task was about, and is warm there. */
  about?: string;
}

export class Pool<Task, Note, Result> {
  /** Threads that ended without being asked to. */
  deaths = 0;
  private readonly start: () => Worker;
  private readonly slots: Slot<Note, Result>[];

  constructor(size: number, start: () => Worker) {
    this.start = start;
    this.slots = Array.from({ length: size }, () => ({}));
  }

  get size(): number {
    return this.slots.length;
  }

  /** Threads without a task. */
  get free(): number {
    return this.slots.filter((slot) => !slot.run).length;
  }

  /**
   * Does a task on a free thread, if possible one whose last task was about the same.
   * @throws WorkerDied, or an error with the sentence that the thread gave.
   */
  run(
    task: Task,
    { about, onNote = () => {} }: { about: string; onNote?(note: Note): void },
  ): Promise<Result> {
    const free = this.slots.filter((slot) => !slot.run);
    const slot = free.find((slot) => slot.about === about) ?? free[0];
    if (!slot) throw new Error("every thread has a task");
    slot.about = about;
    return new Promise((resolve, reject) => {
      slot.worker ??= this.open(slot);
      slot.worker.postMessage(task);
      slot.run = { onNote, resolve, reject }; // last: when one of these throws, the thread stays free
    });
  }

  private open(slot: Slot<Note, Result>): Worker {
    const worker = this.start();
    let cause: unknown;
    const done = () => {
      const { run } = slot;
      slot.run = undefined;
      return run;
    };
    worker.on("message", (reply: Reply<Note, Result>) => {
      if ("note" in reply) slot.run?.onNote(reply.note);
      else if ("result" in reply) done()?.resolve(reply.result);
      else done()?.reject(new Error(reply.error));
    });
    worker.on("error", (error) => {
      cause = error;
    });
    worker.on("exit", () => {
      if (slot.worker !== worker) return; // was asked to
      slot.worker = slot.about = undefined;
      this.deaths++;
      done()?.reject(new WorkerDied("the worker ended in the middle of its task", { cause }));
    });
    return worker;
  }

  /** Ends the threads; those with a task when it is done, or can be left. */
  async close(): Promise<void> {
    await Promise.all(
      this.slots.map(async (slot) => {
        const { worker } = slot;
        slot.worker = undefined;
        if (worker) await endThread(worker);
        slot.run?.reject(new WorkerDied("the server is closing"));
        slot.run = undefined;
      }),
    );
  }
}
