import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import "../../src/index.node.ts";
import { parseDistillRecipe } from "../../src/distill/index.ts";
import { pathSeed } from "../../src/distill/paths.ts";
import { type PhaseOptions, phaseJob, phasePaths } from "../../src/distill/phase.ts";
import { unetConfig } from "../../src/models/index.ts";
import { type DenoiseStep, loadWeights, readConfig, SDXL } from "../../src/pipelines/index.ts";
import { alphasCumprod, ddim, schedulerConfig } from "../../src/samplers/index.ts";
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

/** What the first phase is made of, with micro-batches of 64. */
async function optionsOf(of: ReturnType<typeof recipe>): Promise<PhaseOptions> {
  const [stage] = of.stages;
  const weights = await loadWeights(join(teacher, "unet"));
  const schedule = await readConfig(join(teacher, "scheduler", "scheduler_config.json"), schedulerConfig);
  const network = { weights, prediction: "epsilon" } as const;
  return {
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
  };
}

/** Timesteps at which 64 steps of the student start and end, each once. */
async function timesteps(of: ReturnType<typeof recipe>): Promise<{ starts: number[]; ends: number[] }> {
  const job = phaseJob(await optionsOf(of));
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

describe("paths", () => {
  const COUNT = 5;
  const walked = async (changes: object = {}, microBatch = 4) => {
    const phase = { objective: "mse", paths: { count: COUNT, ...changes } };
    const of = recipe(phase, { from: 8, to: 4, guidance: 3 });
    const options = { ...(await optionsOf(of)), microBatch };
    const done: number[] = [];
    const paths = (await phasePaths(options, {
      folder: join(folder, "paths"),
      onProgress: (n) => done.push(n),
    }))!;
    return { options, paths, done };
  };
  afterEach(() => rmSync(join(folder, "paths"), { recursive: true, force: true }));

  test("are where the guided teacher comes by when it draws, from noise of the same seed", async () => {
    const { options, paths } = await walked({ steps: 4 });
    await using walks = paths;
    const all = Array.from({ length: COUNT }, (_, path) => path);
    expect(walks.members).toEqual([all]);
    const { shape, data } = await walks.latents(all);
    expect(shape).toEqual([COUNT, 4, 4, 16, 16]);
    await using sdxl = await SDXL.load(teacher, { threads: 1 });
    const level = (t: number) => [Math.sqrt(options.alphas[t - 1]), Math.sqrt(1 - options.alphas[t - 1])];
    for (const [path, row] of walks.captions.entries()) {
      const points = [250, 500, 750, 1000].map((t, p) => ({
        level: level(t),
        x: data.subarray((path * 4 + p) * 1024, (path * 4 + p + 1) * 1024),
      }));
      const onStep = ({ i: step, denoised }: Pick<DenoiseStep, "i" | "denoised">): void => {
        if (step === 3) return;
        const [{ level: to, x: next }, { level: from, x }] = points.slice(2 - step, 4 - step);
        // both are alpha·x0 + sigma·eps of the same x0
        const scale = to[0] * from[1] - from[0] * to[1];
        const clean = next.map((v, i) => (from[1] * v - to[1] * x[i]) / scale);
        const error = Math.max(...clean.map((v, i) => Math.abs(v - denoised.data[i])));
        expect(error).toBeLessThan(1e-3 * Math.max(...clean.map(Math.abs)));
      };
      const seed = pathSeed(options.seed, path);
      const sampling = { steps: 4, guidance: 3, sampler: ddim, schedule: "trailing", seed } as const;
      await sdxl.textToImage(
        material.data.caption(row, () => 0),
        { ...sampling, onStep },
      );
    }
  });

  test("are walked once, and again for another teacher or another number of points", async () => {
    await (await walked()).paths[Symbol.asyncDispose]();
    const again = await walked();
    expect(again.done).toEqual([]);
    const first = await again.paths.latents([0]);
    await again.paths[Symbol.asyncDispose]();
    const other = await walked({ steps: 4 });
    expect(other.done.at(-1)).toBe(COUNT);
    expect(await other.paths.latents([0])).not.toEqual(first);
    await other.paths[Symbol.asyncDispose]();
  });

  test("are what the student starts from, at noise of its own in the end", async () => {
    const { options, paths } = await walked();
    await using walks = paths;
    const job = phaseJob({ ...options, paths: walks });
    const { sample, timesteps, pooled } = await job.feeds({ step: 3, micro: 0, micros: 1 });
    const points = await walks.latents([0, 1, 2, 3, 4]);
    const place = (b: number) => {
      const x = sample.data.slice(b * 1024, (b + 1) * 1024);
      return Array.from({ length: COUNT * 4 }, (_, i) => i).find((i) =>
        points.data.subarray(i * 1024, (i + 1) * 1024).every((v, j) => v === x[j]),
      );
    };
    const starts = [249, 499, 749, 999];
    const met = Array.from(timesteps.data.slice(0, 4), Number);
    expect(met).toContain(999);
    expect(Math.min(...met)).toBeLessThan(999);
    for (let b = 0; b < 4; b++) {
      const found = place(b);
      const start = Number(timesteps.data[b]);
      if (start === 999) expect(found).toBeUndefined();
      else {
        expect(starts[found! % 4]).toBe(start);
        const row = walks.captions[Math.floor(found! / 4)];
        const { pooledSize, pooled: bank } = material.bank;
        expect(pooled.data.slice(b * pooledSize, (b + 1) * pooledSize)).toEqual(
          bank.slice(row * pooledSize, (row + 1) * pooledSize),
        );
      }
    }
  });
});
