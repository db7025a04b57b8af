/** @file Pictures from a pool of threads with warm models. */

import { availableParallelism, totalmem } from "node:os";
import type { Worker } from "node:worker_threads";
import { GeneratedPicture, type Precision } from "../pipelines/index.ts";
import { startThread } from "../platform/index.ts";
import type { Device } from "../runtime/index.ts";
import type { Catalogue } from "./catalogue.ts";
import type { Made, PictureRequest, Step } from "./jobs.ts";
import type { Studio } from "./local.ts";
import { Pool } from "./pool.ts";
import type { LoadSpec, Note, PictureResult, PictureTask, WorkerSetup } from "./protocol.ts";
import { Refusal } from "./refusal.ts";
import type { Stop } from "./stop.ts";

export interface StudioOptions {
  /** Default "cpu". */
  device?: Device;
  /** Default "auto". */
  precision?: Precision;
  /** Threads with models of their own; default 1, and of small models one for each core, up to 4. */
  concurrency?: number;
  /** Cores of each; default all, divided among them. */
  threads?: number;
  /** Bytes of weights that may be loaded at a time, in all threads together; default half of the machine's memory. */
  memoryLimit?: number;
  /** Told what takes time while a model is loaded, in a sentence. */
  onNotice?(sentence: string): void;
  /** Starts a thread; for tests. */
  start?(setup: WorkerSetup): Worker;
}

export class PictureStudio implements Studio {
  private readonly catalogue: Catalogue;
  private readonly pool: Pool<PictureTask, Note, PictureResult | undefined>;
  private readonly memoryLimit: number;
  private readonly onNotice: (sentence: string) => void;

  constructor(catalogue: Catalogue, options: StudioOptions = {}) {
    const {
      device = "cpu",
      precision = "auto",
      concurrency = jobsAtATime(catalogue, device),
      memoryLimit = totalmem() / 2,
      onNotice = () => {},
      start = startWorker,
    } = options;
    const { threads = Math.max(1, Math.floor(availableParallelism() / concurrency)) } = options;
    this.catalogue = catalogue;
    this.onNotice = onNotice;
    this.memoryLimit = memoryLimit / concurrency;
    const setup = { device, precision, threads, memoryLimit: this.memoryLimit };
    this.pool = new Pool(concurrency, () => start(setup));
  }

  get size(): number {
    return this.pool.size;
  }

  get free(): number {
    return this.pool.free;
  }

  get deaths(): number {
    return this.pool.deaths;
  }

  /** Loads the first model in every thread: in one first, which writes what the others then find. */
  async warm(): Promise<void> {
    const load = this.fitting(this.catalogue.load({}));
    const one = () => this.pool.run({ load }, { about: load.key, onNote: this.listener() });
    await one();
    // All at once, so that every thread gets one; the first has the model already.
    await Promise.all(Array.from({ length: this.size }, one));
  }

  private listener(onStep: (step: Step) => void = () => {}): (note: Note) => void {
    return (note) => ("notice" in note ? this.onNotice(note.notice) : onStep(note));
  }

  check(request: PictureRequest): void {
    this.catalogue.check(request);
    this.fitting(this.catalogue.task(request).load);
  }

  async paint(
    request: PictureRequest,
    { stop, onStep }: { stop: Stop; onStep(step: Step): void },
  ): Promise<Made> {
    const task = { ...this.catalogue.task(request), stop: stop.flag.buffer as SharedArrayBuffer };
    const result = (await this.pool.run(task, {
      about: task.load.key,
      onNote: this.listener(onStep),
    })) as PictureResult;
    const pictures = result.pictures.map(({ picture, settings }) => new GeneratedPicture(picture, settings));
    return { ...result, pictures };
  }

  private fitting(load: LoadSpec): LoadSpec {
    if (load.bytes <= this.memoryLimit) return load;
    const [needed, most] = [load.bytes, this.memoryLimit].map((n) => `${Math.ceil(n / 2 ** 20)} MiB`);
    throw new Refusal("invalid_value", `the model has ${needed} of weights; a worker may load ${most}`, {
      param: "model",
    });
  }

  close(): Promise<void> {
    return this.pool.close();
  }
}

/** Jobs at a time where nothing else is asked, at most. */
const MOST_JOBS = 4;

/** Small models use a machine best with several pictures at a time. */
function jobsAtATime({ models }: Catalogue, device: Device): number {
  const small = device === "cpu" && [...models.values()].every((model) => model.small);
  return small ? Math.min(MOST_JOBS, availableParallelism()) : 1;
}

function startWorker(setup: WorkerSetup): Worker {
  return startThread(import.meta.url, "worker", setup);
}
