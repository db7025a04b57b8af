/** @file A server with the tiny model, for one test each. */

import { setTimeout } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { afterEach } from "vitest";
import { startThread } from "../../src/platform/index.ts";
import { createServer, type ServeOptions, type Server } from "../../src/serve/index.ts";
import { goldenPath } from "../parity/golden.ts";

export const TINY = goldenPath("tiny-sdxl");

const open = new Set<Server>();
afterEach(async () => {
  for (const server of open) await server.close(0);
  open.clear();
});

export async function tinyServer(options: ServeOptions = {}): Promise<Server> {
  const server = await createServer({
    models: { tiny: TINY },
    concurrency: 1,
    threads: 1,
    port: 0,
    ...options,
  });
  open.add(server);
  return server;
}

/** A POST of JSON without a socket. */
export function post(
  server: Server,
  url: string,
  payload: object | string,
  headers: Record<string, string> = {},
) {
  return server.app.inject({
    method: "POST",
    url,
    payload,
    headers: { "content-type": "application/json", ...headers },
  });
}

/** Waits for what another thread or process has to do first. */
export async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await setTimeout(2);
}

/** The job when it has ended. */
export async function ended(server: Server, id: string) {
  await server.app.inject(`/api/jobs/${id}/events`);
  return (await server.app.inject(`/api/jobs/${id}`)).json();
}

export type Start = NonNullable<ServeOptions["start"]>;

/** A worker as servers start them. */
export const living: Start = (setup) =>
  startThread(new URL("../../src/serve/studio.ts", import.meta.url).href, "worker", setup);

/** A worker that can load models, and dies of requests. */
export const mortal: Start = () =>
  new Worker(
    `const { parentPort } = require("node:worker_threads");
     parentPort.on("message", (task) => {
       if (task === "close") parentPort.close();
       else if (task.request) process.exit(1);
       else parentPort.postMessage({ result: undefined });
     });`,
    { eval: true },
  );

/**
 * Starts workers that say how far they are and do not end before they are told to stop; to the prompt "short" they say at
 * once that they made nothing.
 * @param note JavaScript of what they say of a `task`.
 */
export const waiting =
  (note: string): Start =>
  () =>
    new Worker(
      `const { parentPort } = require("node:worker_threads");
     parentPort.on("message", (task) => {
       if (task === "close") return parentPort.close();
       if (!task.request) return parentPort.postMessage({ result: undefined });
       if (task.request.prompt === "short")
         return parentPort.postMessage({ result: { pictures: [], warnings: [], seconds: {} } });
       parentPort.postMessage({ note: ${note} });
       const stop = new Int32Array(task.stop);
       const timer = setInterval(() => {
         if (Atomics.load(stop, 0) === 0) return;
         clearInterval(timer);
         parentPort.postMessage({ error: "stopped" });
       }, 1);
     });`,
      { eval: true },
    );

export const endless = waiting("{ step: 1, of: 1000 }");
