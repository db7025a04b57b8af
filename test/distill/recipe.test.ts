/** @file Recipes of distillation: defaults, and one sentence for what cannot be trained. */

import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { parseDistillRecipe, planDistillation } from "../../src/distill/index.ts";

const learningRate = { peak: 1e-4 };
const phase = (objective: string, changes: object = {}) => ({
  objective,
  steps: 5,
  learningRate,
  ...changes,
});
const recipe = (stages: object[], changes: object = {}) => ({
  task: "distill",
  out: "run",
  teacher: "model",
  data: { kind: "icons", folder: "icons" },
  stages,
  ...changes,
});
const first = { from: 32, to: 8, phases: [phase("conditional"), phase("unconditional")] };
const noisy = { timesteps: [10, 250], weights: [1, 1] };

test("defaults are the paper's", () => {
  const { optimizer, stages } = parseDistillRecipe(recipe([first]));
  expect(optimizer).toEqual({ betas: [0, 0.99], eps: 1e-8, weightDecay: 0 });
  expect(stages[0]).toMatchObject({ guidance: 1, timesteps: "grid", publish: true });
});

test("a phase may have an optimiser of its own", () => {
  const own = phase("mse", { optimizer: { type: "muon", weightDecay: 0 } });
  const { stages } = parseDistillRecipe(recipe([{ ...first, phases: [own, phase("conditional")] }]));
  expect(stages[0].phases.map((p) => p.optimizer)).toEqual([
    { type: "muon", betas: [0.9, 0.99], eps: 1e-8, weightDecay: 0 },
    undefined,
  ]);
});

describe("a recipe that cannot be trained is told why", () => {
  const next = (changes: object) => [first, { from: 8, to: 4, phases: [phase("mse")], ...changes }];
  test.each<[string, object[], string]>([
    [
      "uneven",
      [{ ...first, to: 5 }],
      "stages.0 goes from 32 to 5 steps; the first must be a multiple of the second",
    ],
    [
      "uneven, not for consistency alone",
      [{ ...first, to: 5, phases: [phase("mse"), phase("lcm")] }],
      "stages.0 goes from 32 to 5 steps; the first must be a multiple of the second",
    ],
    ["upwards", [{ ...first, from: 8, to: 32 }], "stages.0 goes from 8 to 32 steps"],
    ["a gap", next({ from: 16 }), "stages.1.from is 16; the stage before ends at 8"],
    [
      "no such teacher",
      next({ phases: [phase("mse", { teacher: 16 })] }),
      "phases.0.teacher is 16; give one of 8, 8",
    ],
    [
      "a LoRA that stays before there is one",
      [{ ...first, phases: [phase("conditional", { lora: 4, discriminatorAlone: true })] }],
      "stages.0.phases.0: no LoRA was trained before that could stay as it is",
    ],
    [
      "no discriminator to learn alone",
      [{ ...first, phases: [phase("mse", { discriminatorAlone: true })] }],
      "stages.0.phases.0.discriminatorAlone is for adversarial objectives; mse has no discriminator",
    ],
    [
      "LoRAs of two ranks",
      [{ ...first, phases: [phase("mse", { lora: 4 }), phase("mse", { lora: 8 })] }],
      "stages.0.phases.1: a LoRA of rank 8 cannot go on from one of rank 4",
    ],
    [
      "a rate for no discriminator",
      [{ ...first, phases: [phase("mse", { discriminatorRate: 4 })] }],
      "stages.0.phases.0.discriminatorRate is for adversarial objectives; mse has no discriminator",
    ],
    [
      "noise for no discriminator",
      [{ ...first, phases: [phase("mse", { renoise: noisy })] }],
      "stages.0.phases.0.renoise is for adversarial objectives; mse has no discriminator",
    ],
    [
      "times that paths pass by",
      [{ ...first, timesteps: [250, 300], phases: [phase("mse", { paths: { count: 8 } })] }],
      "stages.0.phases.0: paths of 32 steps do not stop at the timestep 300",
    ],
    [
      "paths for all times",
      [{ ...first, timesteps: "all", phases: [phase("mse", { paths: { count: 8 } })] }],
      'stages.0.phases.0: paths of 32 steps do not stop at all timesteps; give a list, or "grid"',
    ],
    [
      "paths of other steps",
      [{ ...first, phases: [phase("mse", { paths: { count: 8, steps: 6 } })] }],
      "stages.0.phases.0: paths of 6 steps do not stop at those of 8",
    ],
    [
      "weights for other times",
      [{ ...first, phases: [phase("conditional", { renoise: { ...noisy, weights: [1] } })] }],
      "stages.0.phases.0.renoise has 2 timesteps and 1 weights",
    ],
    [
      "converting in the middle",
      [
        { ...first, phases: [phase("convert")] },
        { from: 8, to: 4, phases: [phase("mse")] },
      ],
      "stages.1 needs a teacher that predicts noise; only the last stage may convert",
    ],
    [
      "a LoRA that predicts otherwise",
      [{ ...first, phases: [phase("convert"), phase("mse", { lora: 4 })] }],
      "stages.0.phases.1: a LoRA cannot change what the base model predicts",
    ],
    [
      "batch",
      [{ ...first, phases: [phase("mse", { batch: 24 })] }],
      "batch 24 is not a multiple of microBatch 16",
    ],
    ["objective", [{ ...first, phases: [phase("gan")] }], 'stages.0.phases.0.objective is "gan"'],
    ["field", [{ ...first, loras: 3 }], 'unknown field "loras" in stages.0'],
    ["time", [{ ...first, timesteps: [0] }], "stages.0.timesteps"],
  ])("%s", (_, stages, message) => {
    expect(() => parseDistillRecipe(recipe(stages), "r.json")).toThrow(message);
    expect(() => parseDistillRecipe(recipe(stages), "r.json")).toThrow(/^r\.json: /);
  });
});

test("consistency takes any number of steps", () => {
  const stages = [{ ...first, to: 5, phases: [phase("convert"), phase("lcm")] }];
  expect(parseDistillRecipe(recipe(stages)).stages[0].to).toBe(5);
});

test("the plan counts parameters, evaluations and work", async () => {
  const teacher = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));
  const stages = [
    { from: 8, to: 4, guidance: 5, phases: [phase("mse", { lora: 2 }), phase("mse")] },
    {
      ...{ from: 4, to: 2 },
      phases: [
        phase("conditional", { batch: 32 }),
        phase("conditional", { batch: 32, discriminatorAlone: true }),
      ],
    },
  ];
  const planned = (changes: object) =>
    planDistillation(parseDistillRecipe(recipe(stages, { teacher, batch: 16, ...changes })), { replicas: 1 });
  const plan = await planned({});
  const [lora, full, adversarial, alone] = plan.phases;
  expect(full.trained).toBe(40_128); // of the tiny UNet
  expect(lora.trained).toBeLessThan(full.trained);
  expect(full.discriminator).toBe(0);
  expect(adversarial.discriminator).toBeGreaterThan(0.3 * full.trained);
  expect([lora, full, adversarial].map((p) => p.teacherEvaluations)).toEqual([4, 4, 2]);
  expect(adversarial.gflop).toBeGreaterThan(full.gflop);
  expect(alone).toMatchObject({ trained: 0, discriminator: adversarial.discriminator });
  expect(alone.gflop).toBeLessThan(adversarial.gflop);
  const { phases } = await planned({ discriminatorEncoder: "frozen" });
  expect(phases[2].discriminator).toBeLessThan(0.2 * adversarial.discriminator);
  for (const p of plan.phases) {
    expect(p.bytes).toBeGreaterThan(4 * 7 * p.trained);
    expect(p.seconds * plan.gflops * plan.efficiency).toBeCloseTo(p.steps * p.gflop, 6);
    expect(p.walkGflop).toBe(0);
  }
  const walking = stages.map((stage) => ({
    ...stage,
    phases: stage.phases.map((p) => ({ ...p, paths: { count: 10 } })),
  }));
  const [, walk, unguided] = (await planned({ stages: walking })).phases;
  expect(walk.walkGflop).toBeCloseTo(4 * unguided.walkGflop, 6); // twice the steps, and guidance
  expect(walk.seconds / (walk.steps * walk.gflop + walk.walkGflop)).toBeCloseTo(
    unguided.seconds / (unguided.steps * unguided.gflop + unguided.walkGflop),
    2,
  );
  const data = { kind: "pictures", path: "pictures", size: 60 };
  await expect(planned({ data })).rejects.toThrow("data.size is 60; distill needs a multiple of 16");
  expect(plan.seconds).toBeCloseTo(
    plan.phases.reduce((sum, p) => sum + p.seconds, 0),
    9,
  );
}, 60_000);
