/** @file `fewstep distill`: a model becomes one that needs few steps. */

import type { Command } from "commander";
import { writableFolder } from "./files.ts";
import { wholeNumber } from "./options.ts";
import { duration } from "./progress.ts";
import { followRun } from "./run.ts";

interface DistillOptions {
  out?: string;
  replicas?: number;
  dryRun?: boolean;
  json?: boolean;
}

export function distillCommand(program: Command): void {
  program
    .command("distill")
    .description("distil a model to few steps as a recipe says; run again to go on where it stopped")
    .argument("<recipe.json>", "see docs/recipes.md")
    .option("--out <folder>", "of the run (default: the recipe's)")
    .option("--replicas <n>", "gradients computed side by side (default: one per core)", wholeNumber(1, 256))
    .option("--dry-run", "print stages, parameters, FLOPs, memory and time, and train nothing")
    .option("--json", "print one JSON object per logged step, or the plan as one")
    .action(distillRecipe);
}

async function distillRecipe(path: string, options: DistillOptions): Promise<void> {
  const { out, replicas, json } = options;
  if (options.dryRun) return printPlan(path, options);
  await followRun(
    async (hooks) => {
      const { distill, readDistillRecipe } = await import("../distill/index.ts");
      await import("../platform/node.ts");
      const read = await readDistillRecipe(path);
      const recipe = { ...read, out: out ?? read.out };
      writableFolder(recipe.out, out === undefined ? `${path}: out ${recipe.out}` : `--out ${out}`);
      return { ...recipe, steps: distill(recipe, { ...hooks, replicas }) };
    },
    { json },
  );
}

async function printPlan(path: string, { replicas, json }: DistillOptions): Promise<void> {
  const { planDistillation, readDistillRecipe } = await import("../distill/index.ts");
  await import("../platform/node.ts");
  const plan = await planDistillation(await readDistillRecipe(path), { replicas });
  if (json) {
    console.log(JSON.stringify(plan));
    return;
  }
  const row = (...cells: string[]): string =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(40) : cell.padStart(12))).join("");
  console.log(row("phase", "steps×batch", "teacher", "trained", "D", "GFLOP/step", "memory", "time"));
  for (const p of plan.phases)
    console.log(
      row(
        p.phase,
        `${p.steps}×${p.batch}`,
        `${p.teacherEvaluations} eval.`,
        millions(p.trained),
        p.discriminator > 0 ? millions(p.discriminator) : "–",
        p.gflop.toFixed(0),
        `${(p.bytes / 2 ** 30).toFixed(1)} GiB`,
        duration(p.seconds),
      ),
    );
  console.log(
    `about ${duration(plan.seconds)} in all at ${plan.efficiency} of ${plan.gflops.toFixed(0)} GFLOP/s, ` +
      `${(plan.bytes / 2 ** 30).toFixed(1)} GiB at most`,
  );
}

function millions(count: number): string {
  return `${(count / 1e6).toFixed(1)} M`;
}
