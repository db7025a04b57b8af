/** @file Leaving early without traces: Ctrl-C removes half-written files and restores the terminal. */

import process from "node:process";
import { removeUnfinished } from "../platform/index.ts";

const actions = new Set<() => void>();
let running: AbortController | undefined;

/** Runs `action` should the process be interrupted before the returned function is called. */
export function onInterrupt(action: () => void): () => void {
  actions.add(action);
  return () => void actions.delete(action);
}

/** For commands that end in order: the first interruption only aborts this signal, the second ends at once. */
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
        process.exitCode = code;
        running.abort();
        return;
      }
      for (const action of actions) action();
      removeUnfinished();
      if (signal === "SIGINT") console.error("fewstep: interrupted");
      process.exit(code);
    });
}
