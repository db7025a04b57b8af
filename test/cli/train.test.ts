/** @file `fewstep train` refuses what it cannot train, skips pictures it cannot read, and stops in order. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { pathToFileURL } from "node:url";
import { beforeEach, describe, expect, test } from "vitest";
import { SafetensorsFile } from "../../src/weights/index.ts";
import { at, plain, put } from "../data/temporary.ts";
import { recipe, TINY } from "./recipe.ts";
import { expectRefusal, fewstep } from "./run.ts";

beforeEach(async () => {
  for (const color of ["red", "green", "blue"]) {
    put(`pictures/${color}.png`, await plain("png", [8, 8], color));
    put(`pictures/${color}.txt`, color);
  }
});

describe("refused, and the run's folder stays as it was:", () => {
  test.each<[string, () => string | Promise<string>, string | RegExp]>([
    ["no recipe", () => at("none.json"), /none.json: no such file$/m],
    ["a folder", () => dirname(recipe()), /: this is a folder, a file is needed$/m],
    ["no JSON", () => put("recipe.json", "{task:"), /recipe.json is not valid JSON$/m],
    ["no object", () => put("recipe.json", "[]"), /recipe.json: not a JSON object$/m],
    [
      "an unknown field",
      () => recipe({ stpes: 3 }),
      /recipe.json: unknown field "stpes"; remove it or correct/,
    ],
    [
      "a wrong type",
      () => recipe({ steps: "many" }),
      /recipe.json: steps is "many": expected number, received string/,
    ],
    [
      "no dataset",
      () => recipe({ data: { kind: "pictures", path: at("no"), size: 8 } }),
      /no: no such file or folder$/m,
    ],
    [
      "no icons",
      () => recipe({ data: { kind: "icons", folder: at("no") } }),
      /no: not an icon dataset: .*; make one/,
    ],
    [
      "no pictures",
      () => recipe({ data: { kind: "pictures", path: dirname(put("empty/a.md", "")), size: 8 } }),
      /empty: no pictures; expected name.png/,
    ],
    [
      "a size that does not halve",
      () => recipe({ data: { kind: "pictures", path: at("pictures"), size: 7 } }),
      "data.size is 7; vae needs a multiple of 2",
    ],
    [
      "nothing to start from",
      () => recipe({ start: at("pictures") }),
      /pictures has no weights: expected one of/,
    ],
  ])("%s", async (_, make, message) => {
    expectRefusal(await fewstep(["train", await make()]), message);
    expect(existsSync(at("run/recipe.json"))).toBe(false);
  });

  test("a folder that cannot be written", async () => {
    const args = ["train", recipe(), "--out", put("file", "")];
    expectRefusal(await fewstep(args), /--out .*file: cannot write there: .*; name another folder$/m);
  });
});

test("a run: unreadable pictures are skipped, another recipe and weights that do not fit are refused", async () => {
  put("pictures/bad.png", "no picture");
  put("pictures/bad.txt", "bad");
  const first = await fewstep(["train", recipe()]);
  expect(first.stderr).toMatch(
    /^skipped bad.png: not a PNG, JPEG or WebP file\nfewstep: 1 picture of the dataset skipped\nstep 1\/4/,
  );
  expect(first).toMatchObject({ code: 0, stdout: `${at("run")}\n` });
  expect(readdirSync(at("run/vae"))).toEqual(["config.json", "diffusion_pytorch_model.safetensors"]);

  const before = readFileSync(at("run/recipe.json"), "utf8");
  const other = recipe({ batch: 4, learningRate: { peak: 1 } });
  expectRefusal(
    await fewstep(["train", other]),
    `${at("run")} has the run of another recipe (it differs in batch, learningRate); give a new output folder`,
  );
  expect(readFileSync(at("run/recipe.json"), "utf8")).toBe(before);

  const config = { ...TINY, mid_block_add_attention: false, use_quant_conv: false };
  const finer = await fewstep(["train", recipe({ out: at("finer"), start: at("run/vae"), config })]);
  expect(finer.code).toBe(2);
  expect(finer.stderr).toMatch(
    /start .*vae does not fit: 2 left over: quant_conv.weight, quant_conv.bias\n$/,
  );
});

test("Ctrl-C, passed on twice: a checkpoint is saved, the run goes on from there", async () => {
  const args = ["train", recipe({ steps: 100_000 })];
  // Two signals from here would be merged, or come too late; so the process passes the first one on to itself.
  const again = put("again.mjs", 'process.once("SIGINT", () => process.kill(process.pid, "SIGINT"));');
  const { code, stdout, stderr } = await fewstep(args, {
    env: { NODE_OPTIONS: `--import=${pathToFileURL(again)}` },
    started: (child) => child.stderr!.once("data", () => child.kill("SIGINT")),
  });
  const [, step] =
    /\nfewstep: interrupted after step (\d+) of 100000, saved in .*run; run the same/.exec(stderr) ?? [];
  expect(Number(step)).toBeGreaterThan(0);
  expect({ code, stdout }).toEqual({ code: 130, stdout: "" });
  expect(readdirSync(at("run")).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  await using checkpoint = await SafetensorsFile.open(at("run/checkpoint.safetensors"));
  expect(checkpoint.metadata.step).toBe(step);

  const end = String(Number(step) + 1);
  const resumed = await fewstep([...args, "--steps", end]);
  expect(resumed.stderr).toMatch(new RegExp(`^step ${end}/${end}: loss `));
  expect(resumed.code).toBe(0);
});

test("Ctrl-C before the first step ends at once", async () => {
  for (let i = 0; i < 300; i++) {
    put(`pictures/${i}.png`, readFileSync(at("pictures/red.png")));
    put(`pictures/${i}.txt`, "red");
  }
  const { code, stderr } = await fewstep(["train", recipe()], {
    started: (child) => {
      const timer = setInterval(() => {
        if (!existsSync(at("run"))) return; // made when the recipe is read
        clearInterval(timer);
        child.kill("SIGINT");
      }, 5);
    },
  });
  expect({ code, stderr }).toEqual({ code: 130, stderr: "fewstep: interrupted\n" });
  expect(readdirSync(at("run"))).toEqual([]);
});
