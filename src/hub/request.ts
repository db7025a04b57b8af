/** @file One request to the hub, made again where that may help. */

import { setTimeout as sleep } from "node:timers/promises";
import { version } from "../platform/index.ts";
import { proxyRefusal, proxyVariables } from "./proxy.ts";
import { type Asked, isFrom, refusal } from "./refusal.ts";

/** Further tries after a failure. */
export const RETRIES = 5;
/** Network failures that may pass; a name that does not resolve will not. */
const PASSING = /^(?:ECONNRESET|EPIPE|ETIMEDOUT|EAI_AGAIN|ENET\w+|EHOST\w+|UND_ERR_\w+)$/;
/** Longest wait between two tries, ms. */
const MAX_DELAY = 60_000;

export interface Connection {
  /** Without a slash at its end. */
  endpoint: string;
  token?: string;
  /** Through a proxy where the environment names one. */
  fetch: typeof fetch;
  /** Wait before the first further try, doubled for each, ms. */
  retryDelay: number;
}

interface Requested {
  signal?: AbortSignal;
  headers?: Record<string, string>;
  /** Takes what is wanted of a good answer, as part of the try. */
  read?(response: Response): Promise<Response>;
}

/**
 * Network failures, 429 and 5xx are tried again. The token goes to the endpoint alone: `fetch` drops it when
 * another host takes over.
 * @returns an answer that is ok, or 416
 * @throws one sentence.
 */
export async function request(
  url: string,
  connection: Connection,
  asked: Asked,
  { read, headers, signal }: Requested,
): Promise<Response> {
  const { endpoint, token, fetch, retryDelay } = connection;
  const isOwn = new URL(url).origin === new URL(endpoint).origin;
  const sent = new Headers({ ...headers, "user-agent": `fewstep/${version()}` });
  if (token && isOwn) sent.set("authorization", `Bearer ${token}`);
  const attempt = async (): Promise<Response> => {
    const response = await fetch(url, { headers: sent, signal });
    return response.ok && read ? read(response) : response;
  };
  for (let tries = 0; ; tries++) {
    let wait = retryDelay * 2 ** tries;
    const answer = await attempt().catch((error: TypeError) => error);
    signal?.throwIfAborted();
    const refused = proxyRefusal(answer);
    if (refused) throw refused;
    if (answer instanceof Error) {
      if (tries === RETRIES || !PASSING.test(codeOf(answer))) throw unreachable(url, answer);
    } else {
      if (answer.ok || answer.status === 416) return answer;
      await answer.body?.cancel();
      if (tries === RETRIES || !mayPass(answer, endpoint)) throw refusal(answer, asked);
      wait = retryAfter(answer) ?? wait;
    }
    await pause(wait, signal);
  }
}

/** Waits, a minute at most. @param delay ms */
export async function pause(delay: number, signal?: AbortSignal): Promise<void> {
  await sleep(Math.min(delay, MAX_DELAY), undefined, { signal }).catch((error: Error) => {
    signal?.throwIfAborted(); // with its own reason
    throw error;
  });
}

/** Addresses that the hub sends us to expire; asking it again gives a new one. */
function mayPass(response: Response, endpoint: string): boolean {
  const { status } = response;
  return status === 408 || status === 429 || status >= 500 || (status === 403 && !isFrom(endpoint, response));
}

/** In ms, from seconds or a date; undefined where the server says nothing. */
function retryAfter({ headers }: Response): number | undefined {
  const text = headers.get("retry-after")?.trim();
  if (!text) return undefined;
  const ms = /^\d+$/.test(text) ? 1000 * Number(text) : Date.parse(text) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.max(0, ms);
}

/** Of the failure that `fetch` wraps. */
function codeOf({ cause }: Error): string {
  return (cause as NodeJS.ErrnoException | undefined)?.code ?? "";
}

function unreachable(url: string, cause: Error): Error {
  const why = codeOf(cause) || ((cause.cause as Error | undefined) ?? cause).message;
  const check = ["the network", ...proxyVariables()].join(" and ");
  return new Error(
    `${new URL(url).host} cannot be reached (${why}): check ${check}, or name a mirror in HF_ENDPOINT`,
    { cause },
  );
}
