/** @file The server as the page sees it: requests wait until it is there again, and for the token that it wants. */

import { EventSourceParserStream } from "eventsource-parser/stream";
import type { z } from "zod";
import type { errorBody, job, jobRequest, model } from "../src/serve/http/schemas.ts";
import { Store } from "./store.ts";

export type Model = z.output<typeof model>;
export type Job = z.output<typeof job>;
export type JobRequest = z.input<typeof jobRequest>;

/** Lost: it does not answer. Locked: it wants a token, and says so. */
export type Standing = { is: "ready" } | { is: "lost" } | { is: "locked"; why: string };

/** What happens to a job before its end. */
export type JobNews =
  | { type: "queued"; position: number }
  | { type: "started" }
  | { type: "progress"; step: number; of: number; preview?: string };

export interface Drawn {
  job: Job;
  /** PNG files, with their settings inside. */
  pictures: Blob[];
}

/** In the server's words. */
export class Refused extends Error {
  override name = "Refused";
}

const TOKEN = "fewstep.token";
/** Between two looks at whether the server is there again. */
const LOOK_MS = 500;
/** Times that a job is asked for when the server goes away in the middle of it. */
const ATTEMPTS = 3;
const READY: Standing = { is: "ready" };

class Server {
  readonly standing = new Store<Standing>(READY);
  private looking = false;

  /** Of an API. @throws Refused, or what `signal` aborts with. */
  async request(path: string, init: RequestInit = {}): Promise<Response> {
    for (;;) {
      const answer = await this.attempt(path, init);
      if (answer?.ok) return answer;
      if (!answer || answer.status === 503) await this.until({ is: "lost" }, init.signal);
      else {
        const { message } = await refusalOf(answer);
        if (answer.status !== 401) throw new Refused(message);
        await this.until({ is: "locked", why: message }, init.signal);
      }
    }
  }

  async json<T>(path: string, init: RequestInit = {}): Promise<T> {
    for (;;) {
      const answer = await this.request(path, init);
      try {
        return await answer.json();
      } catch (error) {
        init.signal?.throwIfAborted();
        if (error instanceof SyntaxError) throw new Refused("the server's answer is not JSON");
        await this.until({ is: "lost" }, init.signal); // it broke off
      }
    }
  }

  /** Has pictures made; aborting cancels the job. @throws Refused, or what `signal` aborts with. */
  async draw(
    request: JobRequest,
    { signal, onNews }: { signal: AbortSignal; onNews?(news: JobNews): void },
  ): Promise<Drawn> {
    for (let attempt = 1; ; attempt++) {
      const job = await this.follow(request, { signal, onNews });
      if (job && job.error?.code !== "shutting_down") {
        if (job.status !== "completed") throw new Refused(job.error?.message ?? "the job was cancelled");
        const files = job.pictures.map(({ url }) => this.request(new URL(url).pathname, { signal }));
        return { job, pictures: await Promise.all((await Promise.all(files)).map((file) => file.blob())) };
      }
      if (attempt === ATTEMPTS) throw new Refused(`the server went away ${ATTEMPTS} times during this job`);
      await this.until({ is: "lost" }, signal);
    }
  }

  /** Takes a token; whoever waits for one asks again. */
  unlock(token: string): void {
    localStorage.setItem(TOKEN, token);
    this.standing.set(READY);
  }

  /** The job at its end; undefined when the connection breaks before. */
  private async follow(
    request: JobRequest,
    { signal, onNews }: { signal: AbortSignal; onNews?(news: JobNews): void },
  ): Promise<Job | undefined> {
    const answer = await this.request("/api/jobs", {
      method: "POST",
      headers: { "content-type": "application/json", accept: "text/event-stream" },
      body: JSON.stringify(request),
      signal,
    });
    const events = answer
      .body!.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array<ArrayBuffer>>)
      .pipeThrough(new EventSourceParserStream())
      .getReader();
    try {
      for (;;) {
        const { done, value } = await events.read();
        if (done) return undefined;
        const { event = "", data } = value;
        if (event === "error") throw new Refused((JSON.parse(data) as ErrorBody).error.message);
        if (event === "completed" || event === "failed" || event === "cancelled") return JSON.parse(data);
        onNews?.({ type: event, ...JSON.parse(data) });
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof Refused) throw error;
      return undefined;
    }
  }

  /** Undefined when nobody answers. */
  private async attempt(path: string, init: RequestInit): Promise<Response | undefined> {
    const headers = new Headers(init.headers);
    const token = localStorage.getItem(TOKEN);
    if (token) headers.set("authorization", `Bearer ${token}`);
    try {
      return await fetch(path, { ...init, headers });
    } catch {
      init.signal?.throwIfAborted();
      return undefined;
    }
  }

  /** Until the server is ready again. */
  private async until(standing: Standing, signal?: AbortSignal | null): Promise<void> {
    signal?.throwIfAborted();
    this.standing.set(standing);
    if (standing.is === "lost") void this.look();
    await new Promise<void>((resolve, reject) => {
      const end = this.standing.subscribe(() => {
        if (this.standing.get().is !== "ready") return;
        end();
        resolve();
      });
      signal?.addEventListener("abort", () => {
        end();
        reject(signal.reason);
      });
    });
  }

  private async look(): Promise<void> {
    if (this.looking) return;
    this.looking = true;
    do await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    while (!(await this.attempt("/healthz", {}))?.ok);
    this.looking = false;
    this.standing.set(READY);
  }
}

type ErrorBody = z.output<typeof errorBody>;

async function refusalOf(answer: Response): Promise<{ message: string }> {
  const body = (await answer.json().catch(() => undefined)) as ErrorBody | undefined;
  return body?.error ?? { message: `the server answered with status ${answer.status}` };
}

export const server: Server = new Server();
