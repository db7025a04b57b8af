/** @file A progress bar on stderr, only where a person watches. */

import process from "node:process";
import { onInterrupt } from "./cleanup.ts";

export interface Progress {
  /** Shows what is being done; `done` of `total` when that is known. */
  update(what: string, done?: number, total?: number): void;
  /** Removes the bar. */
  stop(): void;
}

/** A bar when `wanted` and stderr is a terminal, else something that stays silent. */
export async function startProgress(wanted: boolean): Promise<Progress> {
  if (!wanted || !process.stderr.isTTY) return { update: () => {}, stop: () => {} };
  const { SingleBar } = (await import("cli-progress")).default;
  const bar = new SingleBar({
    stream: process.stderr,
    format: "{what} {bar} {value}/{total}",
    barsize: 30,
    barCompleteChar: "█",
    barIncompleteChar: "░",
    hideCursor: true,
    clearOnComplete: true,
    gracefulExit: false, // signals are handled in one place
  });
  bar.start(1, 0, { what: "" });
  const forget = onInterrupt(() => bar.stop());
  return {
    update(what, done = 0, total = 1) {
      bar.setTotal(total);
      bar.update(done, { what });
      bar.render(); // a running session blocks the timer that would draw it
    },
    stop() {
      forget();
      bar.stop();
    },
  };
}

/** `1 step`, `4 steps`. */
export function counted(n: number, one: string): string {
  return `${n} ${one}${n === 1 ? "" : "s"}`;
}

/** `45 s`, `12 min`, `3 h 05 min`. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
