import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import "../../src/index.node.ts";
import { parseDistillRecipe } from "../../src/distill/index.ts";
import { phaseJob } from "../../src/distill/phase.ts";
import { unetConfig } from "../../src/models/index.ts";
import { loadWeights, readConfig } from "../../src/pipelines/index.ts";
import { alphasCumprod, schedulerConfig } from "../../src/samplers/index.ts";
import { type Material, openMaterial } from "../../src/train/index.ts";
import { tinyModel, tinyPictures } from "./tiny-model.ts";

let folder: string;
let teacher: string;
let material: Material;

function recipe(phase: object, stage: object = {}) {
  const learningRate = { peak: 1e-3, warmup: 1 };
  const phases = [{ objective: "conditional", steps: 1, learningRate, ...phase }];
  const data = { kind: "pictures", path: join(folder, "pictures"), size: 64 };
  const stages = [{ from: 4, to: 2, ...stage, phases }];
  return parseDistillRecipe({ task: "distill", out: folder, teacher, data, captions: 1, stages });
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
  teacher = await tinyModel(join(folder, "teacher"));
  await tinyPictures(join(folder, "pictures"));
  const source = { ...recipe({}), vae: join(teacher, "vae"), text: teacher };
  material = await openMaterial(
    source,
    await readConfig(join(teacher, "unet", "config.json"), unetConfig),
    {},
  );
});
afterAll(async () => {
  await material.close();
  rmSync(folder, { recursive: true });
});

/** Timesteps at which 64 steps of the student start and end, each once. */
async function timesteps(of: ReturnType<typeof recipe>): Promise<{ starts: number[]; ends: number[] }> {
  const [stage] = of.stages;
  const weights = await loadWeights(join(teacher, "unet"));
  const schedule = await readConfig(join(teacher, "scheduler", "scheduler_config.json"), schedulerConfig);
  const network = { weights, prediction: "epsilon" } as const;
  const job = phaseJob({
    ...of,
    config: await readConfig(join(teacher, "unet", "config.json"), unetConfig),
    stage,
    phase: stage.phases[0],
    material,
    alphas: alphasCumprod(schedule),
    teacher: network,
    student: network,
    base: weights,
    discriminator: {},
    loraScale: 1,
    microBatch: 64,
    zeroEmptyPrompt: true,
  });
  const { data, shape } = (await job.feeds({ step: 0, micro: 0, micros: 1 })).timesteps;
  const [levels, B] = shape;
  const row = (k: number) =>
    [...new Set(Array.from(data.slice(k * B, (k + 1) * B), Number))].sort((a, b) => a - b);
  return { starts: row(0), ends: row(levels - 1) };
}

test("students are trained at their own steps, or at the times of the stage", async () => {
  expect(await timesteps(recipe({}))).toEqual({ starts: [499, 999], ends: [0, 499] });
  const stage = { timesteps: [250, 500, 750, 1000] };
  expect(await timesteps(recipe({}, stage))).toEqual({ starts: [249, 499, 749, 999], ends: [0, 249, 499] });
});

test("a phase may have times of its own", async () => {
  const stage = { timesteps: [250, 500, 750, 1000] };
  expect(await timesteps(recipe({ timesteps: [500] }, stage))).toEqual({ starts: [499], ends: [0] });
  expect(await timesteps(recipe({ timesteps: "grid" }, stage))).toEqual({
    starts: [499, 999],
    ends: [0, 499],
  });
});
