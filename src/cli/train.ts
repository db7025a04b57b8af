/** @file `fewstep train`: a recipe becomes a model. */

import process from "node:process";
import type { Command } from "commander";
import { interruptSignal } from "./cleanup.ts";
import { Interruption } from "./errors.ts";
import { writableFolder } from "./files.ts";
import { wholeNumber } from "./options.ts";
import { duration, startProgress } from "./progress.ts";

interface TrainOptions {
  out?: string;
  steps?: number;
  replicas?: number;
  json?: boolean;
}

export function trainCommand(program: Command): void {
  program
    .command("train")
    .description("train what a recipe says; run again to go on where it stopped")
    .argument("<recipe.json>", "see docs/recipes.md")
    .option("--out <folder>", "of the run (default: the recipe's)")
    .option("--steps <n>", "(default: the recipe's)", wholeNumber(1, 1e9))
    .option("--replicas <n>", "gradients computed side by side (default: one per core)", wholeNumber(1, 256))
    .option("--json", "print one JSON object per logged step")
    .action(trainRecipe);
}

async function trainRecipe(path: string, { out, steps, replicas, json }: TrainOptions): Promise<void> {
  const progress = await startProgress(!json);
  const signal = interruptSignal(); // Ctrl-C saves a checkpoint first
  try {
    const { readRecipe, train } = await import("../train/index.ts");
    await import("../platform/node.ts");
    const read = await readRecipe(path);
    const recipe = { ...read, out: out ?? read.out, steps: steps ?? read.steps };
    writableFolder(recipe.out, out === undefined ? `${path}: out ${recipe.out}` : `--out ${out}`);
    const onPrepare = (what: string, done?: number, total?: number): void =>
      progress.update(what, done, total);
    const onSkipped = (skipped: readonly { file: string; reason: string }[]): void => {
      for (const { file, reason } of skipped) console.error(printable(`skipped ${file}: ${reason}`));
      const count = skipped.length === 1 ? "1 picture" : `${skipped.length} pictures`;
      if (skipped.length > 0) console.error(`fewstep: ${count} of the dataset skipped`);
    };
    let last = "";
    for await (const p of train(recipe, { replicas, signal, onPrepare, onSkipped })) {
      last = `${p.step} of ${p.steps}`;
      const due = p.step % recipe.logEvery === 0 || p.step === p.steps;
      if (json && due) console.log(JSON.stringify(p));
      const speed = `${p.picturesPerSecond.toFixed(0)} pictures/s, ${duration(p.secondsLeft)} left`;
      progress.update(`loss ${p.loss.toFixed(4)}  ${speed} `, p.step, p.steps);
      if (!json && due && !process.stderr.isTTY)
        console.error(`step ${p.step}/${p.steps}: loss ${p.loss.toFixed(4)}, ${speed}`);
    }
    progress.stop();
    if (signal.aborted)
      throw new Interruption(
        (signal.reason as Interruption).exitCode,
        `interrupted after step ${last}, saved in ${recipe.out}; run the same command again to go on`,
      );
    if (!json) console.log(recipe.out);
  } finally {
    progress.stop();
  }
}

/** File names in strangers' archives may carry terminal commands. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, "�");
}
