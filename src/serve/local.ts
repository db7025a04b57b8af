/** @file Jobs of this process: a bounded queue before some workers, and a bounded memory of what they did. */

import { randomUUID } from "node:crypto";
import { EventEmitter, on, once } from "node:events";
import { LRUCache } from "lru-cache";
import {
  hasEnded,
  type Job,
  type JobEvent,
  type JobStats,
  type Jobs,
  type Made,
  type PictureRequest,
  type Step,
} from "./jobs.ts";
import { WorkerDied } from "./pool.ts";
import { PriorityQueue } from "./queue.ts";
import { type Reason, Refusal } from "./refusal.ts";
import { Stop } from "./stop.ts";

/** Who does the work. */
export interface Studio {
  readonly size: number;
  readonly free: number;
  readonly deaths: number;
  /** @throws Refusal of a request that cannot be done. */
  check(request: PictureRequest): void;
  /** @throws WorkerDied, or an error with a sentence. */
  paint(request: PictureRequest, hooks: { stop: Stop; onStep(step: Step): void }): Promise<Made>;
}

/** Seconds; longer timers fire at once. */
const LONGEST = 2_147_483;

export interface LocalJobsOptions {
  /** Jobs that may wait. */
  queueLimit: number;
  /** Seconds of work on one job; 24 days where it is more. */
  timeLimit: number;
  /** Ended jobs that are remembered, and the bytes that their pictures may take together. */
  history: { jobs: number; bytes: number };
  onEnd(job: Job): void;
  /** Gets what went wrong in the program itself. */
  onError(error: unknown): void;
}

type LocalJob = { -readonly [K in keyof Job]: Job[K] } & {
  readonly events: EventEmitter;
  readonly stop: Stop;
  /** Times that it was begun. */
  attempts: number;
};

export class LocalJobs implements Jobs {
  private readonly studio: Studio;
  private readonly options: LocalJobsOptions;
  private readonly queue = new PriorityQueue<LocalJob>();
  private readonly running = new Set<LocalJob>();
  private readonly ended: LRUCache<string, LocalJob>;
  private readonly idle = new EventEmitter();
  private closing = false;
  /** Of a job, averaged over the last ones. */
  private seconds = 1;

  constructor(studio: Studio, options: LocalJobsOptions) {
    this.studio = studio;
    this.options = options;
    const { jobs, bytes } = options.history;
    this.ended = new LRUCache({ max: jobs, maxSize: bytes, sizeCalculation: bytesOf });
  }

  async submit(request: PictureRequest): Promise<Job> {
    if (this.closing)
      throw new Refusal("shutting_down", "the server is shutting down; try again later", { retryAfter: 10 });
    this.studio.check(request);
    const { free, size } = this.studio;
    const waiting = this.queue.size;
    if (free === 0 && waiting >= this.options.queueLimit) {
      const retryAfter = Math.ceil(Math.min(60, Math.max(1, ((waiting + 1) / size) * this.seconds)));
      const full = `the queue is full, ${waiting} jobs are waiting; try again in ${retryAfter} s`;
      throw new Refusal("queue_full", full, { retryAfter });
    }
    const job: LocalJob = {
      id: randomUUID(),
      request,
      status: "queued",
      createdAt: Date.now(),
      attempts: 0,
      events: new EventEmitter().setMaxListeners(0),
      stop: new Stop(),
    };
    this.queue.push(job, request.priority);
    this.pump();
    return job;
  }

  async get(id: string): Promise<Job | undefined> {
    return this.find(id);
  }

  async list(): Promise<Job[]> {
    const all = [...this.queue, ...this.running, ...this.ended.values()];
    return all.sort((a, b) => b.createdAt - a.createdAt);
  }

  async cancel(id: string): Promise<Job | undefined> {
    const job = this.find(id);
    if (job) this.end(job, { status: "cancelled" });
    return job;
  }

  async *events(id: string, signal: AbortSignal): AsyncGenerator<JobEvent, void> {
    const job = this.find(id);
    if (!job) throw new Refusal("not_found", `there is no job ${id}, or it is forgotten`);
    const live = on(job.events, "event", { signal }); // listens from now on
    try {
      if (hasEnded(job)) return yield endOf(job);
      if (job.status === "queued") yield { type: "queued", position: job.position ?? 0 };
      else {
        yield { type: "started" };
        if (job.step) yield { type: "progress", ...job.step };
      }
      for await (const [event] of live as AsyncIterable<[JobEvent]>) {
        yield event;
        if ("job" in event) return;
      }
    } finally {
      await live.return?.();
    }
  }

  stats(): JobStats {
    const { size: workers, deaths } = this.studio;
    const { closing } = this;
    return { queued: this.queue.size, running: this.running.size, workers, deaths, closing };
  }

  /** Takes no more jobs and drops those that wait; those that run have `grace` seconds to end. */
  async close(grace: number): Promise<void> {
    this.closing = true;
    for (const job of [...this.queue]) this.end(job, closed());
    const late = setTimeout(() => {
      for (const job of [...this.running]) this.end(job, closed());
    }, grace * 1000);
    while (this.running.size > 0) await once(this.idle, "ended");
    clearTimeout(late);
  }

  private find(id: string): LocalJob | undefined {
    for (const jobs of [this.running, this.queue]) for (const job of jobs) if (job.id === id) return job;
    return this.ended.peek(id);
  }

  /** Begins what can begin, and tells the others how many are before them. */
  private pump(): void {
    while (this.studio.free > 0) {
      const job = this.queue.shift();
      if (!job) break;
      void this.work(job);
    }
    let position = 0;
    for (const job of this.queue) {
      if (job.position !== position) emit(job, { type: "queued", position });
      job.position = position++;
    }
  }

  private async work(job: LocalJob): Promise<void> {
    const { timeLimit: most } = this.options;
    const limit = Math.min(job.request.timeLimit ?? most, most, LONGEST);
    job.status = "running";
    job.startedAt = Date.now();
    job.position = undefined;
    job.attempts++;
    this.running.add(job);
    emit(job, { type: "started" });
    const late = setTimeout(
      () => this.end(job, failure("time_limit", `the job took more than ${limit} s, its time limit`)),
      limit * 1000,
    );
    try {
      const onStep = (step: Step): void => {
        if (hasEnded(job)) return;
        job.step = { ...job.step, ...step };
        emit(job, { type: "progress", ...step });
      };
      const made = await this.studio.paint(job.request, { stop: job.stop, onStep });
      const took = (Date.now() - job.startedAt) / 1000;
      this.seconds = 0.8 * this.seconds + 0.2 * took;
      this.end(job, { status: "completed", made });
    } catch (error) {
      if (!hasEnded(job)) this.endOrRetry(job, error);
    } finally {
      clearTimeout(late);
      this.pump();
    }
  }

  /** A job is begun a second time when it was not its own fault, or may not have been. */
  private endOrRetry(job: LocalJob, error: unknown): void {
    if (!(error instanceof WorkerDied)) {
      this.options.onError(error); // it may name paths
      this.end(job, failure("generation_failed", "the job failed; the server's log says why"));
    } else if (this.closing) this.end(job, closed());
    else if (job.attempts > 1) {
      this.options.onError(error.cause ?? error);
      this.end(job, failure("worker_died", "the worker died on this job, and again when it was begun anew"));
    } else {
      this.running.delete(job);
      job.status = "queued";
      job.step = undefined;
      this.queue.push(job, Number.POSITIVE_INFINITY);
    }
  }

  private end(job: LocalJob, how: Pick<Job, "status" | "made" | "error">): void {
    if (hasEnded(job)) return;
    this.queue.remove(job);
    this.running.delete(job);
    job.stop.request();
    const step = job.step && { step: job.step.step, of: job.step.of };
    Object.assign(job, how, { finishedAt: Date.now(), position: undefined, step });
    this.ended.set(job.id, job);
    emit(job, endOf(job));
    this.options.onEnd(job);
    this.idle.emit("ended");
    this.pump();
  }
}

function emit(job: LocalJob, event: JobEvent): void {
  job.events.emit("event", event);
}

function endOf(job: LocalJob): JobEvent {
  return { type: job.status as "completed" | "failed" | "cancelled", job };
}

function failure(reason: Reason, message: string): Pick<Job, "status" | "error"> {
  return { status: "failed", error: { reason, message } };
}

function closed(): Pick<Job, "status" | "error"> {
  return failure("shutting_down", "the server shut down before the job was done; ask again later");
}

/** Of its pictures, and something for the rest. */
function bytesOf({ made }: LocalJob): number {
  return (made?.pictures ?? []).reduce((sum, { data }) => sum + data.length, 1024);
}
