/** @file `fewstep distill`: what it refuses, what it plans, and Ctrl-C in the middle. */

import { existsSync, readdirSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { at, put } from "../data/temporary.ts";
import { tinyModel, tinyPictures } from "../distill/tiny-model.ts";
import { expectRefusal, fewstep } from "./run.ts";

const phase = (objective: string, changes: object = {}) => {
  return { objective, steps: 3, learningRate: { peak: 1e-4 }, ...changes };
};

/** A recipe in the test's folder. */
function recipe(changes: object = {}): string {
  const json = {
    task: "distill",
    out: at("run"),
    teacher: at("teacher"),
    data: { kind: "pictures", path: at("pictures"), size: 64 },
    ...{ batch: 2, microBatch: 2, captions: 1, logEvery: 1, prompts: ["a bird"] },
    stages: [{ from: 4, to: 2, phases: [phase("mse")] }],
    ...changes,
  };
  return put("recipe.json", JSON.stringify(json));
}

describe("refused, and nothing is written:", () => {
  test.each<[string, () => string | Promise<string>, string | RegExp]>([
    ["no recipe", () => at("none.json"), /none.json: no such file$/m],
    [
      "an unknown field",
      () => recipe({ stagse: [] }),
      /unknown field "stagse"; remove it or correct its name$/m,
    ],
    ["a recipe to train", () => recipe({ task: "unet" }), /recipe.json: task is "unet": .*"distill"/],
    ["no stages", () => recipe({ stages: [] }), /recipe.json: stages is \[\]/],
    [
      "steps that do not divide",
      () => recipe({ stages: [{ from: 9, to: 2, phases: [phase("mse")] }] }),
      /stages.0 goes from 9 to 2 steps; the first must be a multiple of the second$/m,
    ],
    ["no teacher", () => recipe(), /teacher\/unet\/config.json: no such file$/m],
    [
      "no pictures",
      async () => {
        await tinyModel(at("teacher"));
        return recipe();
      },
      /pictures: no such file or folder$/m,
    ],
  ])("%s", async (_, path, message) => {
    expectRefusal(await fewstep(["distill", await path()]), message);
    expect(existsSync(at("run")) ? readdirSync(at("run")) : []).toEqual([]);
  });
});

test("--dry-run prints the plan and trains nothing", async () => {
  await tinyModel(at("teacher"));
  const stages = [{ from: 8, to: 4, phases: [phase("conditional", { lora: 2 }), phase("unconditional")] }];
  const path = recipe({ stages });
  const { code, stdout } = await fewstep(["distill", path, "--dry-run"]);
  expect(code).toBe(0);
  const [head, first, second, total] = stdout.trimEnd().split("\n");
  expect(head).toMatch(/^phase +steps×batch +teacher +trained +D +GFLOP\/step +memory +time$/);
  expect(first).toMatch(/^8 to 4: conditional, LoRA of rank 2 +3×2 +2 eval\. /);
  expect(second).toMatch(/^8 to 4: unconditional +3×2 +2 eval\. /);
  expect(total).toMatch(/ in all at 0\.6 of \d+ GFLOP\/s, [\d.]+ GiB at most$/);
  const json = await fewstep(["distill", path, "--dry-run", "--json"]);
  expect(JSON.parse(json.stdout).phases).toHaveLength(2);
  expect(existsSync(at("run"))).toBe(false);
}, 60_000);

test("Ctrl-C saves, says where it stopped, and the same command goes on", async () => {
  await tinyModel(at("teacher"));
  await tinyPictures(at("pictures"));
  const path = recipe({ stages: [{ from: 4, to: 2, phases: [phase("mse", { steps: 200 })] }] });
  const stopped = await fewstep(["distill", path], {
    started: (child) => {
      let stderr = "";
      child.stderr!.on("data", function listen(data) {
        stderr += data;
        if (!stderr.includes("step 2/200")) return;
        child.stderr!.off("data", listen); // a second signal, a second later, would end it at once
        child.kill("SIGINT");
      });
    },
  });
  expect(stopped.code).toBe(130);
  expect(stopped.stderr).toMatch(
    /interrupted after 4 to 2: mse, step \d+ of 200, saved in .*run; run the same/,
  );
  expect(readdirSync(at("run", "4-2", "1-mse"))).toContain("checkpoint.safetensors");
  const { code, stderr } = await fewstep(["distill", path]);
  expect(code).toBe(0);
  expect(stderr).not.toContain("step 1/200:");
  expect(readdirSync(at("run"))).toContain("lightning_2step_unet.safetensors");
}, 120_000);
