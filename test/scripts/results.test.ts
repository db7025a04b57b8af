/** @file The results page says what was measured, and of the rest that it was not. */

import { existsSync, readdirSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { beforeEach, describe, expect, test } from "vitest";
import { readList } from "../../scripts/results/list.ts";
import { loadSafetensors, saveSafetensors } from "../../src/weights/index.ts";
import { icons, judge } from "../cli/dataset.ts";
import { run } from "../cli/run.ts";
import { at, put } from "../data/temporary.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));
const SCRIPT = fileURLToPath(new URL("../../scripts/results.ts", import.meta.url));

beforeEach(async () => {
  await icons(64);
  await judge(TINY, 64);
});

function list(change: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    model: TINY,
    judge: at("judge"),
    data: at("icons"),
    reference: { steps: 2 },
    sheet: 2,
    tables: [
      {
        title: "Held-out pairs",
        name: "heldout",
        configurations: [
          { label: "Teacher, 2 steps", series: "Teacher", steps: 2 },
          { label: "Teacher, 1 step", series: "Teacher", steps: 1, spacing: "trailing" },
          { label: "Few | 1 step", series: "Few", unet: at("few.safetensors") },
          { label: "Absent", unet: at("absent.safetensors"), loras: { [at("absent-lora.safetensors")]: 1 } },
        ],
      },
      {
        title: "A style",
        name: "style",
        split: "heldout-style",
        model: at("style"),
        configurations: [{ label: "Style model" }],
      },
    ],
    ...change,
  };
}

const written = (json: unknown): string =>
  put("list.json", typeof json === "string" ? json : JSON.stringify(json));

const results = (json: unknown, ...more: string[]) =>
  run([SCRIPT, ...["--list", written(json)], ...["--out", at("docs"), "--cache", at("cache"), ...more]]);

async function few(steps = 1): Promise<void> {
  const { tensors } = await loadSafetensors(join(TINY, "unet/diffusion_pytorch_model.safetensors"));
  const settings = { "fewstep.steps": String(steps), "fewstep.guidance": "1" };
  await saveSafetensors(at("few.safetensors"), tensors, settings);
}

const page = (): string => readFileSync(at("docs/results.md"), "utf8");
const kept = (): string[] => readdirSync(at("docs/results"));

test("a page with tables, plots and contact sheets, written again from what was kept", async () => {
  await few();
  put("docs/results-notes.md", "## What it confirms\n\nNothing yet.\n");
  const first = await results(list());
  expect({ code: first.code, stdout: first.stdout }).toEqual({
    code: 0,
    stdout: `${at("docs/results.md")}\n`,
  });
  expect(first.stderr).toContain("Held-out pairs, Teacher, 2 steps: FD ");
  const text = page();
  const rows = text.split("\n").filter((line) => line.startsWith("| "));
  const numbers = (label: string) => rows.find((row) => row.startsWith(`| ${label}`))?.match(/[\d.]+/g) ?? [];
  expect(numbers("Teacher, 2 steps |").length).toBeGreaterThan(10);
  expect(text).not.toMatch(/NaN|undefined|Infinity/);
  expect(numbers("Few \\| 1 step |").slice(0, 3)).toEqual(["1", "1", expect.any(String)]);
  const absent = [at("absent.safetensors"), at("absent-lora.safetensors")];
  expect(text).toContain(
    `| Absent: not measured, ${absent.map((p) => `\`${p}\``).join(", ")} missing | – | –`,
  );
  expect(text).toContain(`## A style\n\nNot measured: \`${at("style")}\` missing.\n`);
  expect(text).toMatch(/\| .*few.safetensors \| `[0-9a-f]{16}` \|/);
  expect(text.endsWith("## What it confirms\n\nNothing yet.\n")).toBe(true);
  const images = [...text.matchAll(/\(images\/(.*?\.png)\)/g)].map(([, name]) => name);
  expect(images).toEqual(
    ["fd-to-teacher", "patch-fd-to-teacher", "fd", "seconds", "pictures"].map(
      (n) => `results-heldout-${n}.png`,
    ),
  );
  for (const name of images)
    expect((await sharp(at("docs/images", name)).metadata()).width).toBeGreaterThan(300);

  // Nothing is measured twice; a result that is not whole is.
  const before = kept().map((name) => readFileSync(at("docs/results", name), "utf8"));
  truncateSync(at("docs/results", kept()[0]), 100);
  const second = await results(list());
  expect(second.stderr.replace(/\(\d+ s\)/g, "")).toEqual(first.stderr.replace(/\(\d+ s\)/g, ""));
  expect(second.code).toBe(0);
  expect(kept()).toHaveLength(3);
  const timeless = (json: string) => json.replace(/"seconds_per_picture": [\d.e-]+/, "");
  const after = kept().map((name) => readFileSync(at("docs/results", name), "utf8"));
  expect(after.map(timeless)).toEqual(before.map(timeless));
  expect(after.slice(1)).toEqual(before.slice(1));
});

test("other weights under the same name are measured anew; numbers of weights that are gone stay", async () => {
  const one = list({
    tables: [{ title: "T", name: "t", configurations: [{ label: "Few", unet: at("few.safetensors") }] }],
  });
  await few();
  expect((await results(one)).code).toBe(0);
  await few(2);
  expect((await results(one)).code).toBe(0);
  expect(kept()).toEqual(["t-few.json"]);
  expect(page()).toContain("| Few | 2 | off | 2 |");
  const before = page();
  rmSync(at("few.safetensors"));
  expect((await results(one)).code).toBe(0);
  expect(page()).toBe(before);
});

test("a model that has no UNet yet, since its training has just begun, is missing", async () => {
  put("style/model_index.json", "{}");
  put("style/unet/config.json", "{}");
  const { code } = await results(list({ tables: [list().tables].flat().slice(1) }));
  expect(code).toBe(0);
  expect(page()).toContain(`## A style\n\nNot measured: \`${at("style")}\` missing.\n`);
});

describe("refused:", () => {
  const tables = (...configurations: unknown[]) => [{ title: "T", name: "t", configurations }];

  test.each<[string, unknown, RegExp]>([
    ["a list that is no JSON", "{", /list.json is not valid JSON: /],
    ["a list without tables", list({ tables: [] }), /list.json: tables: /],
    ["an unknown field", list({ tabels: [] }), /list.json: the file: Unrecognized key: "tabels"$/],
    [
      "an unknown sampler",
      list({ tables: tables({ label: "x", sampler: "eular" }) }),
      /list.json: tables.0.configurations.0.sampler: Invalid option/,
    ],
    [
      "an image name that leaves the folder",
      list({ tables: [{ title: "T", name: "../t", configurations: [{ label: "x" }] }] }),
      /list.json: tables.0.name: give lower-case letters/,
    ],
    [
      "two labels of one record",
      list({ tables: tables({ label: "MSE, 1 step" }, { label: "MSE 1 step" }) }),
      /list.json: tables.0.configurations: two labels have the same letters and digits/,
    ],
  ])("%s", (_, json, message) => expect(readList(written(json))).rejects.toThrow(message));

  test.each<[string, string[], RegExp]>([
    ["no list", ["--list", "none.json"], /^results: none.json: no such file\n$/],
    ["a count of one", ["--count", "1"], /^results: --count 1: give a whole number of at least 2\n$/],
    ["an unknown option", ["--colour"], /^results: Unknown option '--colour'/],
  ])("%s", async (_, options, message) => {
    const { code, stderr } = await results(list(), ...options);
    expect(stderr).toMatch(message);
    expect(code).toBe(2);
    expect(existsSync(at("docs"))).toBe(false);
  });
});
