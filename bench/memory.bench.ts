/**
 * @file Peak memory with all networks loaded and with networks that take turns, each in a process of its own, and
 * whether both make the same pictures. FOLDER is a model folder, by default what `test/parity/record_full.py --size mid
 * model` writes; SIDE is of the pictures.
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { SDXL } from "../src/index.node.ts";
import { planText } from "../src/pipelines/index.ts";
import { cacheFolder } from "../src/platform/index.ts";
import { machine } from "./machine.ts";

const { LIMIT, SIDE = "256" } = process.env;
const folder = process.env.FOLDER ?? join(cacheFolder(), "sdxl-generated-mid");
const HOW = { precision: "fp32", threads: 1 } as const;
const size = { width: Number(SIDE), height: Number(SIDE), steps: 2, guidance: 1, seed: 1 };

if (!existsSync(join(folder, "model_index.json"))) {
  console.error(`${folder} has no model; python test/parity/record_full.py --size mid model writes one`);
  process.exitCode = 2;
} else if (LIMIT) await measure(Number(LIMIT));
else {
  console.log(machine());
  for (const limit of [2 ** 40, await least()]) {
    const env = { ...process.env, FOLDER: folder, LIMIT: String(limit) };
    const self = fileURLToPath(import.meta.url);
    const { status } = spawnSync(process.execPath, [...process.execArgv, self], { env, stdio: "inherit" });
    if (status !== 0) process.exitCode = 1;
  }
}

async function measure(memoryLimit: number): Promise<void> {
  await using sdxl = await SDXL.load(folder, { ...HOW, memoryLimit });
  for (const line of planText(sdxl.memoryPlan(size))) console.log(line);
  for (const prompt of ["a red apple", "a green pear"]) {
    const started = performance.now();
    const [{ data }] = await sdxl.textToImage(prompt, size);
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    const hash = createHash("sha256").update(data).digest("hex").slice(0, 12);
    console.log(`${prompt}: ${seconds} s, picture ${hash}`);
  }
  console.log(`peak memory ${(process.resourceUsage().maxRSS / 1e6).toFixed(2)} GB\n`); // kilobytes
}

/** Bytes with which networks can just take turns. */
async function least(): Promise<number> {
  await using sdxl = await SDXL.load(folder, HOW);
  const { loading, drawing } = sdxl.memoryPlan(size).alone;
  return Math.max(loading, drawing) + 1e6;
}
