/** @file `fewstep pull`: models from the Hugging Face hub. */

import type { Command } from "commander";
import { interruptSignal } from "./cleanup.ts";
import { Interruption } from "./errors.ts";
import { wholeNumber } from "./options.ts";
import { duration, startProgress } from "./progress.ts";

/** Between two redraws of the bar, ms. */
const REDRAW = 100;

interface PullOptions {
  variant?: string;
  endpoint?: string;
  offline?: boolean;
  parallel: number;
  json?: boolean;
}

export function pullCommand(program: Command): void {
  program
    .command("pull")
    .description(
      "fetch a model from the Hugging Face hub into its cache; run again to go on where it stopped",
    )
    .argument("<repo>", "org/name, or org/name@revision")
    .argument("[files...]", "names or globs (default: what a model folder needs to run)")
    .option("--variant <name>", 'weights of a model folder, such as "fp16" (default: the plain ones)')
    .option("--endpoint <url>", "of a mirror (default: HF_ENDPOINT, or https://huggingface.co)")
    .option("--offline", "ask the cache alone, as HF_HUB_OFFLINE=1 does")
    .option("--parallel <n>", "files at once", wholeNumber(1, 64), 4)
    .option("--json", "print one JSON object and nothing else")
    .addHelpText(
      "after",
      "\nA token for private and gated models is taken from HF_TOKEN, or from `hf auth login`.",
    )
    .action(pullModel);
}

async function pullModel(repo: string, files: readonly string[], options: PullOptions): Promise<void> {
  const { json, ...chosen } = options;
  const progress = await startProgress(!json);
  const signal = interruptSignal();
  try {
    const { pull } = await import("../hub/index.ts");
    const pulled = await pull(repo, { ...chosen, files, signal, onProgress: meter(repo, progress.update) });
    progress.stop();
    console.log(json ? JSON.stringify(pulled) : pulled.folder);
  } catch (error) {
    if (!(error instanceof Interruption)) throw error;
    throw new Interruption(error.exitCode, "interrupted; run the same command again to go on from here");
  } finally {
    progress.stop();
  }
}

/** Turns bytes into what the bar shows: MB, speed and the time that is left. */
function meter(
  repo: string,
  update: (what: string, done: number, total: number) => void,
): (done: number, total: number) => void {
  const start = performance.now();
  let first: number | undefined; // bytes that were there
  let drawn = Number.NEGATIVE_INFINITY;
  return (done, total) => {
    first ??= done;
    const now = performance.now();
    if (now - drawn < REDRAW && done < total) return;
    drawn = now;
    const speed = (done - first) / ((now - start) / 1000); // bytes/s
    const rest =
      speed > 0 ? `, ${(speed / 1e6).toFixed(1)} MB/s, ${duration((total - done) / speed)} left` : "";
    update(`${repo}, MB${rest}`, Math.round(done / 1e6), Math.round(total / 1e6));
  };
}
