/** @file A whole distillation on a tiny model: stages follow each other, killed anywhere it goes on exactly. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { divergence } from "../../src/distill/distill.ts";
import {
  type DistillProgress,
  type DistillRecipe,
  distill,
  parseDistillRecipe,
} from "../../src/distill/index.ts";
import { SDXL } from "../../src/pipelines/index.ts";
import { castTensor } from "../../src/tensor/index.ts";
import { loadSafetensors } from "../../src/weights/index.ts";
import { tinyModel, tinyPictures } from "./tiny-model.ts";

const learningRate = { peak: 1e-3, warmup: 1 };
const noisy = { timesteps: [10, 250, 500, 750], weights: [5, 1, 1, 1] };
const students = [250, 500, 750, 1000];
/** A phase of each kind; after [2] there is a model that skips a level, and a LoRA that goes on beside the network. */
const stages: { phases: object[]; [field: string]: unknown }[] = [
  {
    from: 8,
    to: 4,
    guidance: 3,
    publish: false,
    phases: [{ objective: "mse", lora: 2, steps: 2, learningRate, paths: { count: 6 } }],
  },
  {
    from: 4,
    to: 2,
    timesteps: students,
    phases: [
      { objective: "conditional", lora: 2, steps: 2, learningRate },
      { objective: "unconditional", discriminatorAlone: true, steps: 2, learningRate },
      { objective: "unconditional", steps: 2, learningRate },
      { objective: "mse", lora: 2, steps: 2, learningRate },
    ],
  },
  {
    from: 2,
    to: 1,
    timesteps: students,
    phases: [
      { objective: "convert", steps: 2, learningRate },
      { objective: "unconditional", teacher: 4, renoise: noisy, steps: 2, learningRate },
    ],
  },
];
const PHASES = stages.flatMap((stage) => stage.phases).length;

let folder: string;
let teacher: string;
let pictures: string;
let whole: { recipe: DistillRecipe; steps: DistillProgress[] };

function recipe(out: string, changes: object = {}): DistillRecipe {
  const data = { kind: "pictures", path: pictures, size: 64 };
  const common = { batch: 4, microBatch: 2, captions: 2, logEvery: 1, checkpointMinutes: 1e-9 };
  const prompts = ["a red bird"];
  return parseDistillRecipe({
    ...{ task: "distill", out: join(folder, out), teacher, data, ...common, prompts, stages },
    ...{ discriminatorHeads: "all", keepDiscriminator: true, patience: 0 },
    ...changes,
  });
}

async function steps(of: DistillRecipe, signal?: AbortSignal): Promise<DistillProgress[]> {
  const all: DistillProgress[] = [];
  for await (const p of distill(of, { replicas: 1, signal })) all.push(p);
  return all;
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
  teacher = await tinyModel(join(folder, "teacher"));
  pictures = await tinyPictures(join(folder, "pictures"));
  const one = recipe("whole");
  whole = { recipe: one, steps: await steps(one) };
}, 300_000);
afterAll(() => rmSync(folder, { recursive: true }));

/** Runs `child.ts`, for 3 minutes at most. */
function child(...args: string[]) {
  const script = fileURLToPath(new URL("child.ts", import.meta.url));
  const { signal, status, stderr } = spawnSync(
    process.execPath,
    ["--import", import.meta.resolve("tsx"), script, ...args],
    { encoding: "utf8", timeout: 180_000 },
  );
  return { signal, status, stderr };
}

/** Every row of every phase's log, without the speed. */
function logs(out: string): Record<string, object[]> {
  const found = readdirSync(join(folder, out), { recursive: true }).map(String).sort();
  const files = found.filter((name) => name.endsWith("log.jsonl"));
  return Object.fromEntries(
    files.map((name) => {
      const lines = readFileSync(join(folder, out, name), "utf8")
        .trim()
        .split("\n");
      return [
        name,
        lines.map((line) => {
          const { pictures_per_second, ...row } = JSON.parse(line);
          return row;
        }),
      ];
    }),
  );
}

test("every phase trains, and reports both sides", () => {
  expect(whole.steps.map((p) => p.phase)).toEqual([
    ...[
      "8 to 4: mse, LoRA of rank 2",
      "4 to 2: conditional, LoRA of rank 2",
      "4 to 2: unconditional, discriminator alone",
      "4 to 2: unconditional",
      "4 to 2: mse, LoRA of rank 2",
    ].flatMap((p) => [p, p]),
    ...["2 to 1: convert", "2 to 1: unconditional"].flatMap((p) => [p, p]),
  ]);
  const rows = Object.values(logs("whole"));
  expect(rows.map((r) => r.length)).toEqual(Array.from({ length: PHASES }, () => 2));
  for (const p of whole.steps.filter((s) => /conditional(?!.*alone)/.test(s.phase))) {
    expect(p.metrics.discriminator_loss).toBeGreaterThan(0);
    expect(p.metrics.discriminator_grad_norm).toBeGreaterThan(0);
    expect(p.metrics.discriminator_accuracy_real).toBeLessThanOrEqual(1);
  }
});

test("a student stays while the discriminator learns alone; the LoRA goes on beside the whole network", async () => {
  const weights = async (stage: string, phase: string, file = "student") =>
    (await loadSafetensors(join(whole.recipe.out, stage, phase, `${file}.safetensors`))).tensors;
  const lora = await weights("4-2", "1-conditional-lora");
  const alone = await weights("4-2", "2-unconditional");
  const key = "mid_block.resnets.0.conv1";
  const start = (await loadSafetensors(join(teacher, "unet", "diffusion_pytorch_model.safetensors"))).tensors;
  expect(alone["conv_in.weight"].data).toEqual(start["conv_in.weight"].data); // no LoRA is on it
  expect(alone[`${key}.weight`].data).not.toEqual(start[`${key}.weight`].data); // base and LoRA merged
  const logged = logs("whole")[join("4-2", "2-unconditional", "log.jsonl")];
  expect(Object.keys(logged[0])).toEqual(expect.arrayContaining(["loss", "accuracy_real", "accuracy_fake"]));
  const after = await weights("4-2", "4-mse-lora");
  expect(Object.keys(after).sort()).toEqual(Object.keys(lora).sort());
  expect(after[`${key}.lora_up.weight`].data).not.toEqual(lora[`${key}.lora_up.weight`].data);
  // the next stage goes on from the whole network and its discriminator
  const published = await loadSafetensors(join(whole.recipe.out, "lightning_2step_unet.safetensors"));
  const unet = await weights("4-2", "3-unconditional");
  expect(published.tensors["conv_in.weight"].data).toEqual(
    castTensor(unet["conv_in.weight"], "float16").data,
  );
  await using sdxl = await SDXL.load(teacher, {
    unet: join(whole.recipe.out, "2-1", "1-convert", "student.safetensors"),
  });
  expect(sdxl.info.defaults).toMatchObject({ steps: 1, guidance: 0 });
});

test("a discriminator goes on through a stage and into the next, with and without its second view", async () => {
  const critic = async (stage: string, phase: string) =>
    (await loadSafetensors(join(whole.recipe.out, stage, phase, "discriminator.safetensors"))).tensors;
  const runs = [
    await critic("4-2", "1-conditional-lora"),
    await critic("4-2", "2-unconditional"),
    await critic("4-2", "3-unconditional"),
    await critic("2-1", "2-unconditional"),
  ];
  expect(Object.keys(runs[0])).toContain("discriminator.head.source.weight");
  expect(Object.keys(runs[1])).not.toContain("discriminator.head.source.weight");
  for (const key of ["encoder.conv_in.weight", "head.convs.0.weight", "heads.0.out.weight"])
    for (const [i, after] of runs.slice(1).entries()) {
      const [a, b] = [runs[i], after].map((run) => run[`discriminator.${key}`].data as Float32Array);
      const moved = Math.max(...a.map((v, k) => Math.abs(v - b[k])));
      expect(moved).toBeGreaterThan(0);
      expect(moved).toBeLessThan(0.01); // two steps of 1e-3 at most; anew it would be another draw
    }
});

test("a frozen encoder is not among what the discriminator learned", async () => {
  const phases = [{ objective: "conditional", steps: 1, learningRate }];
  const frozen = recipe("frozen", {
    discriminatorEncoder: "frozen",
    stages: [{ from: 4, to: 2, publish: false, phases }],
    prompts: [],
  });
  await steps(frozen);
  const folder = join(frozen.out, "4-2", "1-conditional");
  expect(readdirSync(folder).filter((name) => name.endsWith(".png"))).toEqual([]); // no prompt, no grid
  const file = join(folder, "discriminator.safetensors");
  const keys = Object.keys((await loadSafetensors(file)).tensors);
  expect(keys).toContain("discriminator.heads.0.out.weight");
  expect(keys.filter((key) => key.includes("encoder"))).toEqual([]);
}, 120_000);

test("files are named as SDXL-Lightning's, and say how they want to be sampled", async () => {
  const out = whole.recipe.out;
  expect(readdirSync(out).filter((name) => name.endsWith(".safetensors"))).toEqual([
    "lightning_1step_unet_x0.safetensors",
    "lightning_1step_x0.safetensors",
    "lightning_2step.safetensors",
    "lightning_2step_lora.safetensors",
    "lightning_2step_unet.safetensors",
  ]);
  const { metadata } = await loadSafetensors(join(out, "lightning_1step_unet_x0.safetensors"));
  expect(metadata).toMatchObject({ "fewstep.steps": "1", "fewstep.prediction_type": "sample" });
  await using sdxl = await SDXL.load(teacher, { unet: join(out, "lightning_2step_unet.safetensors") });
  expect(sdxl.info.defaults).toMatchObject({ steps: 2, guidance: 0, schedule: "trailing" });
  const [picture] = await sdxl.textToImage("a red bird", { seed: 1 });
  await using single = await SDXL.load(join(out, "lightning_2step.safetensors"));
  const [{ data }] = await single.textToImage("a red bird", { seed: 1 });
  const off = data.map((v, i) => Math.abs(v - picture.data[i]));
  expect(Math.max(...off)).toBeLessThanOrEqual(2); // in the one file all parts are float16
});

test("a LoRA on the base model is the network it was merged into", async () => {
  const only = recipe("lora", { stages: [{ ...stages[0], publish: true }], dtype: "float32" });
  await steps(only);
  const picture = async (options: Parameters<typeof SDXL.load>[1]) => {
    await using sdxl = await SDXL.load(teacher, options);
    const [{ data }] = await sdxl.textToImage("a red bird", { seed: 3 });
    return data;
  };
  const file = (kind: string) => join(only.out, `lightning_4step_${kind}.safetensors`);
  const merged = await picture({ unet: file("unet") });
  expect(await picture({ loras: { [file("lora")]: 1 } })).toEqual(merged);
  expect(await picture({ steps: 4 })).not.toEqual(merged);
}, 120_000);

test("killed in each phase and started again, it comes to the same losses and files", () => {
  const file = join(folder, "killed.json");
  writeFileSync(file, JSON.stringify(recipe("killed")));
  // finished phases yield nothing when they are passed again, so each is the first that the child sees
  for (let phase = 1; phase <= PHASES; phase++) {
    const { signal, stderr } = child(file, phase === 1 ? "1:1" : "2:1");
    expect(signal, stderr).toBe("SIGKILL");
  }
  expect(child(file)).toMatchObject({ status: 0 });
  expect(logs("killed")).toEqual(logs("whole"));
  for (const name of readdirSync(whole.recipe.out).filter((n) => n.endsWith(".safetensors")))
    expect(
      readFileSync(join(folder, "killed", name)).equals(readFileSync(join(whole.recipe.out, name))),
      name,
    ).toBe(true);
}, 900_000);

test("a finished distillation is not done again; another recipe in its folder is refused", async () => {
  const file = join(whole.recipe.out, "lightning_2step.safetensors");
  const before = statSync(file).mtimeMs;
  expect(await steps(whole.recipe)).toEqual([]);
  expect(statSync(file).mtimeMs).toBe(before);
  const other = recipe("whole", { seed: 2 });
  await expect(steps(other)).rejects.toThrow(
    /1-mse-lora was trained by another recipe; give a new output folder/,
  );
});

test("a LoRA beside the networks may be trained anew without them, and what changed is published anew", async () => {
  const beside = (loraSteps: number, changes: object = {}) =>
    recipe("beside", {
      ...changes,
      stages: [
        [8, 4],
        [4, 2],
      ].map(([from, to]) => ({
        ...{ from, to, guidance: from === 8 ? 3 : undefined },
        phases: [
          { objective: "mse", steps: 1, learningRate },
          { objective: "mse", lora: 2, steps: from === 8 ? loraSteps : 1, learningRate },
        ],
      })),
    });
  const titles = (all: DistillProgress[]) => [...new Set(all.map(({ phase }) => phase))];
  const before = titles(await steps(beside(1)));
  expect(before).toHaveLength(4);
  const published = async (kind: string) =>
    (await loadSafetensors(join(folder, "beside", `lightning_4step_${kind}.safetensors`))).tensors;
  const lora = await published("lora");
  const changed = beside(2);
  await expect(steps(changed)).rejects.toThrow(/2-mse-lora was trained by another recipe/);
  for (const stage of ["8-4", "4-2"]) rmSync(join(changed.out, stage, "2-mse-lora"), { recursive: true });
  expect(titles(await steps(changed))).toEqual([before[1], before[3]]);
  expect(await published("lora")).not.toEqual(lora);
  expect(await steps(beside(2, { dtype: "float32" }))).toEqual([]);
  expect((await published("unet"))["conv_in.weight"].dtype).toBe("float32");
}, 300_000);

test("whoever stops listening in the middle leaves no replica that keeps the process alive", () => {
  const file = join(folder, "left.json");
  writeFileSync(file, JSON.stringify(recipe("left")));
  expect(child(file, "1:1", "leave")).toMatchObject({ status: 0, signal: null });
}, 240_000);

test("a phase that has diverged stops there again, until it is deleted", async () => {
  const rated = (peak: number, phaseSteps: number) => {
    const rates = { learningRate: { peak, warmup: 1 }, discriminatorRate: 0.01 };
    const phases = [{ objective: "unconditional", steps: phaseSteps, ...rates }];
    return recipe("diverged", {
      ...{ batch: 1, microBatch: 1, prompts: [], discriminatorHeads: "mid", patience: 3 },
      stages: [{ from: 4, to: 2, publish: false, phases }],
    });
  };
  const one = rated(1, 40); // a student whose latents are far from the teacher's
  const why = await steps(one).then(() => "finished", String);
  expect(why).toMatch(/right about everything for 3 steps.*; delete this folder and lower the learning rate/);
  expect(await steps(one).then(() => "finished", String)).toBe(why);
  rmSync(join(one.out, "4-2", "1-unconditional"), { recursive: true });
  expect(await steps(rated(1e-7, 1))).toHaveLength(1);
}, 120_000);

describe("a discriminator that is right about everything", () => {
  const accuracies = (fake: number) => ({
    discriminator_accuracy_real: 1,
    discriminator_accuracy_fake: fake,
  });
  /** Steps that a phase of `steps` gets through; with `fake` told apart to this share in each. */
  const survived = (patience: number, steps: number, fake: readonly number[]) => {
    const watch = divergence(patience, steps, "run/8-4/1-conditional");
    let count = 0;
    for (const [i, accuracy] of fake.entries()) {
      try {
        count = watch(i + 1, accuracies(accuracy), count);
      } catch {
        return i;
      }
    }
    return fake.length;
  };
  const right = new Array<number>(50).fill(1);

  test("for too long stops the phase", () => {
    expect(survived(3, 50, [1, 1, 0.9, 1, 1, 1, 1])).toBe(5);
    const watch = divergence(3, 50, "run/8-4/1-conditional");
    expect(() => watch(6, accuracies(1), 2)).toThrow(
      /^run\/8-4\/1-conditional: at step 6 the discriminator has been right about everything for 3 steps/,
    );
  });

  test("is right whatever the number of micro-batches that its accuracy is a mean of", () => {
    for (const n of [1, 2, 3, 6, 7, 10, 49]) {
      const mean = new Array<number>(n).fill(1).reduce((sum, v) => sum + v / n, 0);
      expect(survived(3, 50, [mean, mean, mean]), `${n}`).toBe(2);
    }
    expect(survived(3, 50, new Array<number>(50).fill(1 - 1 / 4096))).toBe(50);
  });

  test("stops a short phase after half of its steps", () => {
    expect(survived(300, 50, right)).toBe(24);
  });

  test("never does with patience 0, nor in phases without one", () => {
    expect(survived(0, 50, right)).toBe(50);
    const none = divergence(1, 50, "run");
    for (let i = 0; i < 50; i++) expect(none(i, {}, 0)).toBe(0);
  });
});
