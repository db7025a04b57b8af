/**
 * @file SDXL on generated weights: load, one UNet step at 512² and 1024², a picture in four steps, and peak memory,
 * int8 and fp32. A step's rate stands beside that of a 2048³ MatMul in fp32 of the same run. Each precision has a process
 * of its own, so that peaks are its own. FOLDER is a model folder; by default the one that `test/parity/record_full.py`
 * writes, of full size, or with few layers (SIZE=mid). PRECISIONS, SIDES and ROUNDS choose; MEMORY is a limit in GB.
 * `bench/peers/sdxl.py` runs other engines on the same folder.
 */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { flopsOf, graph, input } from "../src/graph/index.ts";
import { type Precision, SDXL } from "../src/index.node.ts";
import { unet } from "../src/models/index.ts";
import { rootScope } from "../src/nn/index.ts";
import { type Components, readComponents } from "../src/pipelines/components.ts";
import { cacheFolder } from "../src/platform/index.ts";
import { compile } from "../src/runtime/index.ts";
import { Generator } from "../src/tensor/index.ts";
import { machine } from "./machine.ts";

const {
  SIZE = "full",
  PRECISIONS = "int8,fp32",
  SIDES = "512,1024",
  ROUNDS = "3",
  ONLY,
  MEMORY,
} = process.env;
const folder = process.env.FOLDER ?? join(cacheFolder(), `sdxl-generated-${SIZE}`);
const PROMPT = "a photo of an astronaut riding a horse";
const STEPS = 4;

const median = (list: readonly number[]) => [...list].sort((x, y) => x - y)[list.length >> 1];
const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;

if (!existsSync(join(folder, "model_index.json"))) {
  console.error(`${folder} has no model; python test/parity/record_full.py --size ${SIZE} model writes one`);
  process.exitCode = 2;
} else if (ONLY) await measure(ONLY as Precision);
else {
  console.log(machine());
  for (const precision of PRECISIONS.split(",")) {
    const env = { ...process.env, ONLY: precision };
    const self = fileURLToPath(import.meta.url);
    const { status } = spawnSync(process.execPath, [...process.execArgv, self], { env, stdio: "inherit" });
    if (status !== 0) console.log(`${precision}: failed`);
  }
  console.log("other engines on the same folder: python bench/peers/sdxl.py --help");
}

/** FLOP of one UNet call for a picture. */
function unetFlops({ unet: config, text, tokenizers, vae }: Components, pixels: number): number {
  const side = pixels / vae.factor;
  const prediction = unet(rootScope(), config, {
    sample: input("sample", "float32", [1, config.in_channels, side, side]),
    timestep: input("timestep", "float32", [1]),
    encoderHiddenStates: input("hidden", "float32", [1, tokenizers[0].maxLength, config.cross_attention_dim]),
    textEmbeds: input("pooled", "float32", [1, text[1].projection_dim]),
    timeIds: input("time_ids", "float32", [1, 6]),
  });
  return flopsOf(graph({ prediction }));
}

/** FLOP in a millisecond of a 2048³ MatMul in fp32. */
async function matmulRate(): Promise<number> {
  const n = 2048;
  const [a, b] = ["a", "b"].map((name) => input(name, "float32", [n, n]));
  await using program = await compile(graph({ c: a.matmul(b) }));
  const g = new Generator(0);
  const feeds = { a: g.randn([n, n]), b: g.randn([n, n]) };
  const times: number[] = [];
  for (let round = 0; round < 8; round++) {
    const begun = performance.now();
    await program.run(feeds);
    if (round > 0) times.push(performance.now() - begun);
  }
  return (2 * n ** 3) / median(times);
}

async function measure(precision: Precision): Promise<void> {
  const told = (text: string) => console.log(`${precision.padEnd(5)} ${text}`);
  const started = performance.now();
  const memoryLimit = MEMORY === undefined ? undefined : 1e9 * Number(MEMORY);
  await using sdxl = await SDXL.load(folder, { precision, memoryLimit, onNotice: told });
  told(`load ${seconds(performance.now() - started)}`);
  const model = await readComponents(folder, {});
  for (const side of SIDES.split(",").map(Number)) {
    const options = { width: side, height: side, steps: STEPS, guidance: 1, seed: 1 };
    const matmul = [await matmulRate()];
    try {
      const steps: number[] = [];
      for (let round = 0; round < Number(ROUNDS); round++) {
        const begun = performance.now();
        let before = 0;
        const onStep = () => {
          const now = performance.now();
          if (before > 0 && round > 0) steps.push(now - before); // the first waits for the prompt as well
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
      matmul.push(await matmulRate());
      const rate = unetFlops(model, side) / median(steps);
      const whole = (matmul[0] + matmul[1]) / 2;
      told(
        `${side}×${side}, UNet step: ${seconds(median(steps))}, ${(rate / 1e6).toFixed(0)} GFLOP/s, ` +
          `${(rate / whole).toFixed(2)} of an fp32 MatMul (${(whole / 1e6).toFixed(0)} GFLOP/s)`,
      );
    } catch (error) {
      told(`${side}×${side}: ${(error as Error).message}`);
    }
  }
  told(`peak memory ${(process.resourceUsage().maxRSS / 1e6).toFixed(2)} GB`); // kilobytes
}
