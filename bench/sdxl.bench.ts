/**
 * @file Full-size SDXL on generated weights: load, one UNet step at 512² and 1024², a picture in four steps, and peak
 * memory, int8 and fp32. Each precision has a process of its own, so that peaks are its own. FOLDER is where the
 * model lies or is generated (about 7 GB; default sdxl-generated in the cache folder), SIZE=mid takes fewer layers,
 * PRECISIONS and SIDES choose. `bench/peers/sdxl.py` runs other engines on the same folder.
 */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { type Precision, SDXL } from "../src/index.node.ts";
import { cacheFolder } from "../src/platform/index.ts";
import { generateModel, SIZES } from "./generated.ts";
import { machine } from "./machine.ts";

const { SIZE = "full", PRECISIONS = "int8,fp32", SIDES = "512,1024", ROUNDS = "3", ONLY } = process.env;
const folder = process.env.FOLDER ?? join(cacheFolder(), `sdxl-generated-${SIZE}`);
const PROMPT = "a photo of an astronaut riding a horse";
const STEPS = 4;

const median = (list: readonly number[]) => [...list].sort((x, y) => x - y)[list.length >> 1];
const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;

if (ONLY) await measure(ONLY as Precision);
else {
  if (!(SIZE in SIZES)) throw new Error(`SIZE is ${SIZE}; there are ${Object.keys(SIZES).join(", ")}`);
  console.log(machine());
  if (!existsSync(join(folder, "model_index.json"))) {
    console.log(`generating ${SIZE} SDXL in ${folder}`);
    await generateModel(folder, SIZE as keyof typeof SIZES);
  }
  for (const precision of PRECISIONS.split(",")) {
    const env = { ...process.env, FOLDER: folder, ONLY: precision };
    const self = fileURLToPath(import.meta.url);
    const { status } = spawnSync(process.execPath, [...process.execArgv, self], { env, stdio: "inherit" });
    if (status !== 0) console.log(`${precision}: failed`);
  }
  console.log("other engines on the same folder: python bench/peers/sdxl.py --help");
}

async function measure(precision: Precision): Promise<void> {
  const told = (text: string) => console.log(`${precision.padEnd(5)} ${text}`);
  const started = performance.now();
  await using sdxl = await SDXL.load(folder, { precision, onNotice: told });
  told(`load ${seconds(performance.now() - started)}`);
  for (const side of SIDES.split(",").map(Number)) {
    const options = { width: side, height: side, steps: STEPS, guidance: 1, seed: 1 };
    try {
      const steps: number[] = [];
      for (let round = 0; round < Number(ROUNDS); round++) {
        const begun = performance.now();
        let before = 0;
        const onStep = () => {
          const now = performance.now();
          if (before > 0) steps.push(now - before); // the first waits for the prompt as well
          before = now;
        };
        await sdxl.textToImage(PROMPT, { ...options, onStep });
        if (round === 0) continue; // warm-up
        const { encode, denoise, decode } = sdxl.timings;
        told(
          `${side}×${side}, ${STEPS} steps: ${seconds(performance.now() - begun)} ` +
            `(encode ${encode.toFixed(2)}, denoise ${denoise.toFixed(2)}, decode ${decode.toFixed(2)})`,
        );
      }
      told(`${side}×${side}, UNet step: ${seconds(median(steps))}`);
    } catch (error) {
      told(`${side}×${side}: ${(error as Error).message}`);
    }
  }
  told(`peak memory ${(process.resourceUsage().maxRSS / 1e6).toFixed(2)} GB`); // kilobytes
}
