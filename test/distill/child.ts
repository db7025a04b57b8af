/**
 * @file Distils in a process of its own, which kills itself: `child.ts <recipe> [phase:step [leave]]`, after that step
 * of the phase, both from 1, or with "leave" stops listening there. Exits by itself when it gets to the end.
 */

import process from "node:process";
import "../../src/platform/node.ts";
import { distill, readDistillRecipe } from "../../src/distill/index.ts";

const [recipe, place = "0:0", how] = process.argv.slice(2);
const [phase, step] = place.split(":").map(Number);
const phases: string[] = [];
for await (const p of distill(await readDistillRecipe(recipe), { replicas: 1 })) {
  if (!phases.includes(p.phase)) phases.push(p.phase);
  if (phases.length !== phase || p.step !== step) continue;
  if (how === "leave") break;
  process.kill(process.pid, "SIGKILL");
}
