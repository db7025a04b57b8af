/** @file Threads that run a module of this package. */

import { once } from "node:events";
import { Worker } from "node:worker_threads";

/** A thread that does not end by itself within this time is torn down. */
const CLOSE_MS = 10_000;

/**
 * Starts the module `name` beside `here` (an `import.meta.url`) as a thread; from TypeScript sources (development,
 * tests) the loader is registered first.
 */
export function startThread(here: string, name: string, workerData?: unknown): Worker {
  const source = here.endsWith(".ts");
  const url = new URL(`./${name}.${source ? "ts" : "js"}`, here);
  if (!source) return new Worker(url, { workerData });
  const boot = `import("tsx/esm/api").then((t) => { t.register(); return import(${JSON.stringify(url.href)}); })`;
  return new Worker(boot, { eval: true, workerData });
}

/**
 * Asks a thread to end, by the message "close", and waits. To tear one down while it holds sessions may crash the
 * process: it releases them and ends by itself.
 */
export async function endThread(worker: Worker): Promise<void> {
  if (worker.threadId === -1) return; // has ended
  const exit = once(worker, "exit").catch(() => {});
  worker.postMessage("close");
  const late = setTimeout(() => worker.terminate(), CLOSE_MS);
  await exit;
  clearTimeout(late);
}
