/**
 * @file One picture from prompt to pixels, warm, in one process: 1, 2, 4 and 8 steps without guidance, and the
 * teacher's 32 steps with guidance, which are 64 evaluations. Rounds alternate, and the median of each counts,
 * because other work on the machine disturbs all of them alike. The model is the bundled one, or MODEL; where it
 * brings no few-step weights, its own UNet stands in, whose evaluations cost the same.
 */

import { join } from "node:path";
import process from "node:process";
import { bundledModel, type GenerateOptions, SDXL } from "../src/index.node.ts";
import { weightsFile } from "../src/pipelines/index.ts";
import { machine } from "./machine.ts";

const ROUNDS = Number(process.env.ROUNDS ?? 9);
const WARM_UP = 2;
/** Pictures of a row one after the other. The first finds the caches full of another network, so it does not count. */
const TURNS = 4;
const COUNTS = [1, 2, 4, 8];
const TEACHER_STEPS = 32;
const PROMPT = "a red apple";

const model = process.env.MODEL ?? bundledModel();
await using teacher = await SDXL.load(model, { unet: weightsFile(join(model, "unet")) });
const { guidance } = teacher.info.defaults;

interface Row {
  name: string;
  evaluations: number;
  sdxl: SDXL;
  options: GenerateOptions;
}

const rows: Row[] = [];
const missing: number[] = [];
for (const steps of COUNTS) {
  const loaded = await SDXL.load(model, { steps });
  const own = loaded.info.distilled !== steps;
  if (own) {
    missing.push(steps);
    await loaded.dispose();
  }
  rows.push({
    name: `${steps} step${steps === 1 ? "" : "s"}${own ? ", undistilled UNet" : ""}`,
    evaluations: steps,
    sdxl: own ? teacher : loaded,
    options: { steps, guidance: 1 },
  });
}
rows.push({
  name: `teacher, ${TEACHER_STEPS} steps, guidance ${guidance}`,
  evaluations: TEACHER_STEPS * (guidance > 1 ? 2 : 1),
  sdxl: teacher,
  options: { steps: TEACHER_STEPS, guidance },
});

const times: { total: number; denoise: number }[][] = rows.map(() => []);
for (let round = -WARM_UP; round < ROUNDS; round++)
  for (const [i, { sdxl, options }] of rows.entries()) {
    for (let turn = 0; turn < TURNS; turn++) {
      const started = performance.now();
      await sdxl.textToImage(PROMPT, { ...options, seed: Math.max(0, round) * TURNS + turn });
      const total = performance.now() - started;
      if (round >= 0 && turn > 0) times[i].push({ total, denoise: 1000 * sdxl.timings.denoise });
    }
  }

const median = (list: number[]) => [...list].sort((x, y) => x - y)[list.length >> 1];
const medians = times.map((list) => ({
  total: median(list.map((t) => t.total)),
  denoise: median(list.map((t) => t.denoise)),
}));
const side = teacher.info.sampleSize * teacher.info.vaeScaleFactor;
const line = (name: string, ...cells: string[]) =>
  name.padEnd(31) + cells.map((c) => c.padStart(15)).join("");
console.log(machine());
console.log(`${model}, ${side}×${side}, median of ${ROUNDS} rounds`);
if (missing.length > 0)
  console.log(
    `no few-step weights for ${missing.join(", ")} steps there: its own UNet is timed at these counts`,
  );
console.log(line("", "evaluations", "ms", "of it denoise", "teacher / row"));
for (const [i, { total, denoise }] of medians.entries()) {
  const ratio = `${(medians[rows.length - 1].total / total).toFixed(1)}×`;
  console.log(line(rows[i].name, String(rows[i].evaluations), total.toFixed(1), denoise.toFixed(1), ratio));
}
for (const sdxl of new Set(rows.map((row) => row.sdxl))) if (sdxl !== teacher) await sdxl.dispose();
