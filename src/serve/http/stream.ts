/** @file Server-sent events, and clients that leave. */

import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import type { FastifyReply } from "fastify";
import { Refusal } from "../refusal.ts";
import { errorOf, internalError } from "./errors.ts";

/** Without news for so long a comment is sent, so that nothing in between closes the connection. */
const PING_MS = 15_000;

export interface ServerEvent {
  event?: string;
  data: unknown;
}

/** Aborts, and calls back, when the client has its answer, or is gone before. */
export function clientGone({ raw }: FastifyReply, onGone?: () => void): AbortSignal {
  const controller = new AbortController();
  if (onGone) controller.signal.addEventListener("abort", onGone);
  if (raw.destroyed) controller.abort();
  else raw.once("close", () => controller.abort());
  return controller.signal;
}

/** Answers with events as they come; `onError` gets what went wrong in the program itself. */
export function sendEvents(
  reply: FastifyReply,
  events: AsyncGenerator<ServerEvent, void>,
  onError: (error: unknown) => void,
): FastifyReply {
  return reply
    .header("cache-control", "no-cache")
    .header("x-accel-buffering", "no")
    .type("text/event-stream; charset=utf-8")
    .send(Readable.from(frames(events, onError)));
}

async function* frames(
  events: AsyncGenerator<ServerEvent, void>,
  onError: (error: unknown) => void,
): AsyncGenerator<string, void> {
  const ask = () => {
    const answer = events.next();
    answer.catch(() => {}); // nobody waits for it when the client leaves during a `yield`
    return answer;
  };
  try {
    let next = ask(); // nothing is missed from now on
    yield ":\n\n"; // so that the headers are sent at once
    for (;;) {
      const rest = new AbortController();
      const quiet = sleep(PING_MS, "quiet" as const, { signal: rest.signal }).catch(() => "quiet" as const);
      const news = await Promise.race([next, quiet]).finally(() => rest.abort());
      if (news === "quiet") yield ": ping\n\n";
      else if (news.done) return;
      else {
        yield frame(news.value);
        next = ask();
      }
    }
  } catch (error) {
    if ((error as Error).name === "AbortError") return; // the client has left
    if (!(error instanceof Refusal)) onError(error);
    yield frame({ event: "error", data: errorOf(error instanceof Refusal ? error : internalError()) });
  } finally {
    await events.return();
  }
}

function frame({ event, data }: ServerEvent): string {
  return `${event ? `event: ${event}\n` : ""}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;
}
