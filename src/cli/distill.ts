/** @file `fewstep distill`: a model becomes one that needs few steps. */

import type { Command } from "commander";
import { writableFolder } from "./files.ts";
import { wholeNumber } from "./options.ts";
import { followRun } from "./run.ts";

interface DistillOptions {
  out?: string;
  replicas?: number;
  json?: boolean;
}

export function distillCommand(program: Command): void {
  program
    .command("distill")
    .description("distil a model to few steps as a recipe says; run again to go on where it stopped")
    .argument("<recipe.json>", "see docs/recipes.md")
    .option("--out <folder>", "of the run (default: the recipe's)")
    .option("--replicas <n>", "gradients computed side by side (default: one per core)", wholeNumber(1, 256))
    .option("--json", "print one JSON object per logged step")
    .action(distillRecipe);
}

async function distillRecipe(path: string, { out, replicas, json }: DistillOptions): Promise<void> {
  await followRun(
    async (hooks) => {
      const { distill, readDistillRecipe } = await import("../train/index.ts");
      await import("../platform/node.ts");
      const read = await readDistillRecipe(path);
      const recipe = { ...read, out: out ?? read.out };
      writableFolder(recipe.out, out === undefined ? `${path}: out ${recipe.out}` : `--out ${out}`);
      return { ...recipe, steps: distill(recipe, { ...hooks, replicas }) };
    },
    { json },
  );
}
