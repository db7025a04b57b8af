/** @file Leaving early without traces: Ctrl-C removes half-written files and restores the terminal. */

import process from "node:process";
import { removeUnfinished } from "../platform/index.ts";
import { Interruption } from "./errors.ts";

const actions = new Set<() => void>();
let running: AbortController | undefined;
/** By the clock of `performance`, in ms. */
let abortedAt = 0;

/** Runs `action` should the process be interrupted before the returned function is called. */
export function onInterrupt(action: () => void): () => void {
  actions.add(action);
  return () => void actions.delete(action);
}

/**
 * For commands that end in order: the first interruption only aborts this signal, with an `Interruption` to throw
 * when done; the second ends at once.
 */
export function interruptSignal(): AbortSignal {
  running = new AbortController();
  return running.signal;
}

/** Ctrl-C exits with 130, a termination request with 143, both without half-written files. */
export function handleSignals(): void {
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const)
    process.on(signal, () => {
      if (running && !running.signal.aborted) {
        abortedAt = performance.now();
        running.abort(new Interruption(code));
        return;
      }
      // npx passes on what the terminal has sent to all of its processes.
      if (running && performance.now() - abortedAt < 1000) return;
      for (const action of actions) action();
      removeUnfinished();
      if (signal === "SIGINT") console.error("fewstep: interrupted");
      if (!running) process.exit(code);
      // To exit would be to tear down threads that compute, and a crash.
      process.removeAllListeners(signal);
      process.kill(process.pid, signal);
    });
}
