/** @file What the commands that train show while they do. */

import process from "node:process";
import type { Progress } from "../train/index.ts";
import { interruptSignal } from "./cleanup.ts";
import { Interruption } from "./errors.ts";
import { counted, duration, startProgress } from "./progress.ts";

/** Called by a run before its first step. */
interface Hooks {
  /** Ctrl-C saves a checkpoint first. */
  signal: AbortSignal;
  onPrepare(what: string, done?: number, total?: number): void;
  onSkipped(skipped: readonly { file: string; reason: string }[]): void;
}

/** Steps of a run, of one phase after the other where it has several. */
type Steps = AsyncIterable<Progress & { phase?: string }>;

/** Follows a run to its end: a progress bar, lines where there is no terminal, or one JSON object per logged step. */
export async function followRun(
  start: (hooks: Hooks) => Promise<{ steps: Steps; out: string; logEvery: number }>,
  { json }: { json?: boolean },
): Promise<void> {
  const progress = await startProgress(!json);
  const signal = interruptSignal();
  try {
    const { steps, out, logEvery } = await start({
      signal,
      onPrepare: (what, done, total) => progress.update(what, done, total),
      onSkipped: (skipped) => {
        for (const { file, reason } of skipped) console.error(printable(`skipped ${file}: ${reason}`));
        if (skipped.length > 0)
          console.error(`fewstep: ${counted(skipped.length, "picture")} of the dataset skipped`);
      },
    });
    let last = "";
    for await (const p of steps) {
      const phase = p.phase === undefined ? "" : `${p.phase}, `;
      last = `${phase}step ${p.step} of ${p.steps}`;
      const due = p.step % logEvery === 0 || p.step === p.steps;
      if (json && due) console.log(JSON.stringify(p));
      const speed = `${p.picturesPerSecond.toFixed(0)} pictures/s, ${duration(p.secondsLeft)} left`;
      progress.update(`${phase}loss ${p.loss.toFixed(4)}  ${speed} `, p.step, p.steps);
      if (!json && due && !process.stderr.isTTY)
        console.error(`${phase}step ${p.step}/${p.steps}: loss ${p.loss.toFixed(4)}, ${speed}`);
    }
    progress.stop();
    if (signal.aborted)
      throw new Interruption(
        (signal.reason as Interruption).exitCode,
        `interrupted after ${last}, saved in ${out}; run the same command again to go on`,
      );
    if (!json) console.log(out);
  } finally {
    progress.stop();
  }
}

/** File names in strangers' archives may carry terminal commands. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, "�");
}
