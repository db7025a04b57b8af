/** @file Jobs as everyone sees them. Nothing here knows of HTTP, nor of where the jobs wait and are done. */

import type {
  GeneratedPicture,
  PromptWeighting,
  SizeConditioning,
  Timings,
  VaeTiling,
} from "../pipelines/index.ts";
import type { Picture } from "../platform/index.ts";
import { type Reason, Refusal } from "./refusal.ts";

/** What someone asks for; what is left out is the model's. */
export interface PictureRequest extends SizeConditioning {
  prompt: string;
  negativePrompt: string;
  /** Names of the server, not paths. */
  model?: string;
  loras: readonly { name: string; strength: number; textStrength?: number }[];
  /** Pictures. */
  batch: number;
  steps?: number;
  guidance?: number;
  seed: number | bigint;
  /** Pixels. */
  width?: number;
  /** Pixels. */
  height?: number;
  sampler?: string;
  promptWeighting?: PromptWeighting;
  clipSkip?: number;
  vaeTiling?: VaeTiling;
  /** How many previews of the first picture are sent on the way. */
  previews: number;
  /** Higher ones are done first. */
  priority: number;
  /** Seconds of work, not of waiting. */
  timeLimit?: number;
}

/** What came of it. */
export interface Made {
  pictures: readonly GeneratedPicture[];
  /** What the options may get wrong. */
  warnings: readonly string[];
  seconds: Timings;
}

export interface Step {
  /** From 1. */
  step: number;
  of: number;
  preview?: Picture;
}

export type JobStatus = "queued" | "running" | "completed" | "failed" | "cancelled";

export interface Job {
  readonly id: string;
  readonly request: PictureRequest;
  readonly status: JobStatus;
  /** Milliseconds since 1970. */
  readonly createdAt: number;
  readonly startedAt?: number;
  readonly finishedAt?: number;
  /** Jobs before it, while it is queued. */
  readonly position?: number;
  /** The last one that was done. */
  readonly step?: Step;
  readonly made?: Made;
  readonly error?: { reason: Reason; message: string };
}

export type JobEvent =
  | { type: "queued"; position: number }
  | { type: "started" }
  | ({ type: "progress" } & Step)
  | { type: "completed" | "failed" | "cancelled"; job: Job };

export interface JobStats {
  queued: number;
  running: number;
  workers: number;
  /** Workers that died. */
  deaths: number;
  closing: boolean;
}

/** Takes jobs and has them done; another implementation may share them between machines. */
export interface Jobs {
  /** @throws Refusal when the request cannot be done, or there is no room. */
  submit(request: PictureRequest): Promise<Job>;
  get(id: string): Promise<Job | undefined>;
  /** All that are known, newest first. */
  list(): Promise<Job[]>;
  /** Gives the job as it then is; those that have ended stay as they are. */
  cancel(id: string): Promise<Job | undefined>;
  /** What happens to a job, from how it stands now to its end. @throws when there is none, or `signal` aborts. */
  events(id: string, signal: AbortSignal): AsyncGenerator<JobEvent, void>;
  stats(): JobStats;
}

export function hasEnded({ status }: Pick<Job, "status">): boolean {
  return status !== "queued" && status !== "running";
}

/** What a job made. @throws Refusal when it came to nothing. */
export function madeBy(job: Job): Made {
  if (job.made) return job.made;
  const { reason, message } = job.error ?? { reason: "cancelled", message: "the job was cancelled" };
  throw new Refusal(reason, message);
}
