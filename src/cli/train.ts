/** @file `fewstep train`: a recipe becomes a model. */

import type { Command } from "commander";
import { writableFolder } from "./files.ts";
import { wholeNumber } from "./options.ts";
import { followRun } from "./run.ts";

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
  await followRun(
    async (hooks) => {
      const { readRecipe, train } = await import("../train/index.ts");
      await import("../platform/node.ts");
      const read = await readRecipe(path);
      const recipe = { ...read, out: out ?? read.out, steps: steps ?? read.steps };
      writableFolder(recipe.out, out === undefined ? `${path}: out ${recipe.out}` : `--out ${out}`);
      return { ...recipe, steps: train(recipe, { ...hooks, replicas }) };
    },
    { json },
  );
}
