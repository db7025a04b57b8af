/**
 * @file Lines of code per folder of `src/` against a budget: `npm run sz`. Fails when a folder is over.
 *
 * Blank lines and comment lines are free, so nobody saves on a docstring. To raise a budget, change the
 * number here in the commit that needs it.
 */

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

const BUDGET: Record<string, number> = {
  tensor: 400,
  platform: 450,
  graph: 700,
  ops: 1300,
  onnx: 700,
  weights: 1250,
  hub: 850,
  tokenizers: 400,
  samplers: 600,
  runtime: 600,
  quantize: 500,
  nn: 350,
  models: 850,
  pipelines: 3850,
  data: 1050,
  train: 2100,
  distill: 1350,
  eval: 700,
  serve: 2200,
  cli: 1550,
};
/** No file is longer than this, comments included. */
const LONGEST_FILE = 600;

/** Lines that hold code: not blank, not only comment. */
function codeLines(text: string): number {
  let count = 0;
  let inside = false; // of a block comment
  for (const raw of text.split("\n")) {
    let line = raw.trim();
    if (inside) {
      const end = line.indexOf("*/");
      if (end < 0) continue;
      inside = false;
      line = line.slice(end + 2).trim();
    }
    if (line.startsWith("/*") && !line.includes("*/")) inside = true;
    else if (line && !line.startsWith("//") && !/^\/\*.*\*\/$/.test(line)) count++;
  }
  return count;
}

const problems: string[] = [];
const lines = new Map<string, number>(Object.keys(BUDGET).map((folder) => [folder, 0]));
for (const entry of readdirSync("src", { recursive: true, withFileTypes: true })) {
  if (!entry.isFile() || !entry.name.endsWith(".ts")) continue;
  const path = join(entry.parentPath, entry.name);
  const folder = path.split(/[\\/]/)[1];
  const text = readFileSync(path, "utf8");
  const total = text.split("\n").length - 1;
  if (total > LONGEST_FILE) problems.push(`${path} has ${total} lines, more than ${LONGEST_FILE}: split it`);
  if (folder.endsWith(".ts")) continue; // the public surface: main.ts, index.*.ts
  if (!(folder in BUDGET)) problems.push(`src/${folder} has no line budget: add it to scripts/sz.ts`);
  lines.set(folder, (lines.get(folder) ?? 0) + codeLines(text));
}

let sum = 0;
for (const [folder, count] of lines) {
  const budget = BUDGET[folder] ?? 0;
  sum += count;
  console.log(`${folder.padEnd(12)}${String(count).padStart(6)} of ${String(budget).padStart(5)}`);
  if (folder in BUDGET && count > budget)
    problems.push(`src/${folder} has ${count} lines of code, its budget is ${budget}`);
}
console.log(`${"all".padEnd(12)}${String(sum).padStart(6)}`);
for (const problem of problems) console.error(problem);
if (problems.length > 0) process.exitCode = 1;
