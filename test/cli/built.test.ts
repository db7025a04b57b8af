/** @file The command as it is installed: built to JavaScript, without tsx. */

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";
import { readPng } from "../../src/platform/index.ts";
import { at, plain, put } from "../data/temporary.ts";
import { recipe } from "./recipe.ts";

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const TINY = join(ROOT, "test/parity/goldens/tiny-sdxl");

/** `fewstep ...args`, as npm links it. */
const built = (...args: string[]) => run(join(ROOT, "dist/cli/main.js"), args);

beforeAll(() => run("npm", ["run", "build"], { cwd: ROOT }), 120_000);

test("generate, and info of what it made", async () => {
  const out = at("apple.png");
  const { stdout } = await built(
    "generate",
    "a red apple",
    "--seed",
    "1",
    "--steps",
    "3",
    "--out",
    out,
    "--json",
  );
  expect(JSON.parse(stdout)).toMatchObject({ file: out, seed: 1, model: "fewstep" });
  expect(await readPng(readFileSync(out))).toMatchObject({ width: 64, height: 64 });
  expect((await built("info", out)).stdout).toContain("a red apple");
});

test("info of weights and model folders", async () => {
  const weights = join(TINY, "unet/diffusion_pytorch_model.safetensors");
  expect(JSON.parse((await built("info", weights, "--json")).stdout)).toMatchObject({ kind: "weights" });
  expect((await built("info", TINY)).stdout).toContain("UNet2DConditionModel");
});

test("serve, with its worker and its page", async () => {
  const serving = built("serve", "--model", TINY, "--port", "0");
  serving.child.stdout?.once("data", async (url) => {
    const body = JSON.stringify({ prompt: "a red apple", steps: 1, response_format: "url" });
    const headers = { "content-type": "application/json" };
    const answer = await fetch(`${String(url).trim()}/v1/images/generations`, {
      method: "POST",
      body,
      headers,
    });
    const base = String(url).trim();
    const html = await (await fetch(base)).text();
    const [, script] = /<script [^>]*src="\.\/(assets\/[\w-]+\.js)"/.exec(html) ?? [];
    const page = await fetch(`${base}/${script}`);
    if (answer.status === 200 && page.status === 200) serving.child.kill("SIGTERM");
    else serving.child.kill("SIGKILL");
  });
  expect((await serving).stderr).toBe("");
});

test("train, with its workers", async () => {
  for (const name of ["a", "b", "c", "d"]) {
    put(`pictures/${name}.png`, await plain("png", [8, 8]));
    put(`pictures/${name}.txt`, `picture ${name}`);
  }
  const { stderr } = await built("train", recipe({ steps: 2, batch: 4 }));
  expect(stderr).toContain("step 2/2");
  expect(
    JSON.parse((await built("info", at("run/vae/diffusion_pytorch_model.safetensors"), "--json")).stdout),
  ).toMatchObject({
    kind: "weights",
  });
});
