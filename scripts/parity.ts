/**
 * @file fewstep in float32 beside what `test/parity/record_full.py` recorded of diffusers and transformers, on a model
 * of SDXL's true size: `npm run parity [FOLDER] [PART ...]`. Each part has a process of its own, so that one network is
 * in memory at a time, but for `pictures`, which draws as `SDXL` does. Ends with exit code 1 when a bound is missed.
 */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm, symlink } from "node:fs/promises";
import { tmpdir, totalmem } from "node:os";
import { join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { graph, input, symbol } from "../src/graph/index.ts";
import { SDXL } from "../src/index.node.ts";
import { vaeEncode } from "../src/models/index.ts";
import { rootScope } from "../src/nn/index.ts";
import { type Components, readComponents } from "../src/pipelines/components.ts";
import { firstChunks } from "../src/pipelines/encode.ts";
import { readJson, saveJson, weightsOf } from "../src/pipelines/index.ts";
import { partCompiler, vaeCompiler } from "../src/pipelines/programs.ts";
import { cacheFolder } from "../src/platform/index.ts";
import { snrOf } from "../src/quantize/calibrate.ts";
import { compile } from "../src/runtime/index.ts";
import { type FloatTensor, floats, type HostTensor, tensor } from "../src/tensor/index.ts";
import { loadSafetensors } from "../src/weights/index.ts";
import { difference, largest, type Tensors } from "../test/parity/golden.ts";

/** Of the largest value of what was recorded. */
const BOUND = 1e-3;
/** Of 255. */
const PICTURE_BOUND = 2;
/** dB of the int8 UNet. */
const INT8_BOUND = 30;

interface Calls {
  prompts: string[];
  /** Of latents, on which int8 is measured and pictures are drawn. */
  side: number;
  calls: Record<string, { prompt: string; steps: number; seed: number; predictionType: string }>;
}

/** Prints a line, and makes the exit code 1 when the bound is missed. */
function tell(what: string, value: string, bound: string, holds: boolean): void {
  console.log(
    `${what.padEnd(36)} ${value.padStart(12)}   bound ${bound.padEnd(8)} ${holds ? "ok" : "FAILED"}`,
  );
  if (!holds) process.exitCode = 1;
}

function tellError(what: string, actual: HostTensor, expected: HostTensor): void {
  const error = difference(actual, expected) / largest(expected);
  tell(what, error.toExponential(1), BOUND.toExponential(0), error < BOUND);
}

async function golden(folder: string, part: string): Promise<Tensors> {
  const path = join(folder, "goldens", `${part}.safetensors`);
  if (existsSync(path)) return (await loadSafetensors(path)).tensors;
  console.error(`${path} is missing; write it: python test/parity/record_full.py --folder ${folder} ${part}`);
  process.exit(2);
}

/** Columns of [B,T,D]. */
function columns(t: FloatTensor, from: number, to: number): FloatTensor {
  const [B, T, D] = t.shape;
  return floats(
    [B, T, to - from],
    t.data.filter((_, i) => i % D >= from && i % D < to),
  );
}

async function text(folder: string, model: Components, { prompts }: Calls): Promise<void> {
  const expected = await golden(folder, "text");
  await using program = await partCompiler("text", model, [], { precision: "fp32" }).compile();
  const out = await program.run(firstChunks(model, prompts));
  const hidden = out.hidden as FloatTensor;
  const [width, D] = [model.text[0].hidden_size, hidden.shape[2]];
  tellError("text_encoder, hidden states", columns(hidden, 0, width), expected.hidden_1);
  tellError("text_encoder, pooled", out.pooled_1, expected.pooled_1);
  tellError("text_encoder_2, hidden states", columns(hidden, width, D), expected.hidden_2);
  tellError("text_encoder_2, pooled", out.pooled, expected.pooled_2);
}

/** Inputs of the UNet, and its prediction, by the side of the latents. */
async function predictions(folder: string): Promise<Map<number, Tensors>> {
  const bySide = new Map<number, Tensors>();
  for (const [key, t] of Object.entries(await golden(folder, "unet"))) {
    const [name, side] = key.split(".");
    bySide.set(Number(side), { ...bySide.get(Number(side)), [name]: t });
  }
  return bySide;
}

async function unet(folder: string, model: Components): Promise<void> {
  await using program = await partCompiler("unet", model, [], { precision: "fp32" }).compile();
  for (const [side, { prediction, ...feeds }] of await predictions(folder))
    tellError(`unet, ${8 * side}×${8 * side}`, (await program.run(feeds)).prediction, prediction);
}

/** Against the float32 of diffusers, which is that of fewstep within the bound above. */
async function int8(folder: string, model: Components, { side }: Calls): Promise<void> {
  const { prediction, ...feeds } = (await predictions(folder)).get(side)!;
  const encode = async (some: readonly string[]) => {
    await using program = await partCompiler("text", model, [], { precision: "fp32" }).compile();
    return (await program.run(firstChunks(model, some))) as Record<"hidden" | "pooled", FloatTensor>;
  };
  const run = { precision: "int8" as const, encode, onNotice: (sentence: string) => console.log(sentence) };
  await using program = await partCompiler("unet", model, [], run).compile();
  const snr = snrOf([{ prediction }], [await program.run(feeds)]);
  tell(
    `unet in int8, ${8 * side}×${8 * side}`,
    `${snr.toFixed(1)} dB`,
    `${INT8_BOUND} dB`,
    snr >= INT8_BOUND,
  );
}

/** Keys of a VAE that encoding leaves alone. */
const DECODER = /^(decoder|post_quant_conv)\./;

async function vae(folder: string, model: Components): Promise<void> {
  const { pictures, encoded, latents, decoded } = await golden(folder, "vae");
  {
    const [B, H, W] = ["B", "H", "W"].map(symbol);
    const image = input("pictures", "float32", [B, 3, H, W]);
    const g = graph({ encoded: vaeEncode(rootScope(), model.vae.full!, image) });
    await using program = await compile(g, await weightsOf(g, { "": await model.weights("vae") }, DECODER));
    tellError("vae, encoded", (await program.run({ pictures })).encoded, encoded);
  }
  await using program = await vaeCompiler(model, {}).compile();
  tellError("vae, decoded", (await program.run({ latents })).pictures, decoded);
}

async function pictures(folder: string, _: Components, { side, calls }: Calls): Promise<void> {
  const expected = await golden(folder, "pictures");
  for (const [name, { prompt, predictionType, ...options }] of Object.entries(calls)) {
    const model = await predicting(inFloat32(folder), predictionType);
    try {
      // What the first one has left is free for the second, but the allocator has it and not the system.
      await using sdxl = await SDXL.load(model, { precision: "fp32", memoryLimit: totalmem() });
      const size = { width: 8 * side, height: 8 * side };
      const run = sdxl.denoise(prompt, { ...options, ...size, guidance: 1, schedule: "trailing" });
      let step = await run.next();
      while (!step.done) step = await run.next();
      const what = `${options.steps} steps, predicting ${predictionType}`;
      tellError(`${what}: latents`, step.value, expected[`latents.${name}`]);
      const [{ data, height, width }] = await sdxl.decode(step.value);
      const picture = tensor("uint8", [1, height, width, 3], data);
      const error = difference(picture, expected[`pictures.${name}`]);
      tell(`${what}: picture`, `${error}/255`, `${PICTURE_BOUND}/255`, error <= PICTURE_BOUND);
    } finally {
      await rm(model, { recursive: true });
    }
  }
}

/** The weights as float32, where `record_full.py` wrote them: they take half the memory to load. */
function inFloat32(folder: string): string {
  const whole = join(folder, "float32");
  return existsSync(join(whole, "model_index.json")) ? whole : folder;
}

/** A folder with links to a model's parts and another prediction type. */
async function predicting(folder: string, prediction_type: string): Promise<string> {
  const other = await mkdtemp(join(tmpdir(), "fewstep-"));
  for (const name of await readdir(folder))
    if (name !== "scheduler") await symlink(resolve(folder, name), join(other, name));
  const config = join("scheduler", "scheduler_config.json");
  await saveJson(join(other, config), { ...(await readJson(join(folder, config))), prediction_type });
  return other;
}

const PARTS = { text, unet, int8, vae, pictures };
type Part = keyof typeof PARTS;

async function compare(part: Part, folder: string): Promise<void> {
  const calls = (await readJson(join(folder, "goldens", "calls.json"))) as unknown as Calls;
  const started = performance.now();
  const model = await readComponents(part === "int8" ? folder : inFloat32(folder), {});
  await PARTS[part](folder, model, calls);
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  const peak = (process.resourceUsage().maxRSS / 1e6).toFixed(1); // kilobytes
  console.log(`${part}: ${seconds} s, peak memory ${peak} GB`);
}

function compareAll(parts: readonly Part[], folder: string): void {
  for (const part of parts) {
    const env = { ...process.env, ONLY: part };
    const args = [...process.execArgv, fileURLToPath(import.meta.url), folder];
    const { status } = spawnSync(process.execPath, args, { env, stdio: "inherit" });
    if (status !== 0) process.exitCode = 1;
  }
  console.log(process.exitCode ? "parity: FAILED" : "parity: all bounds hold");
}

const isPart = (name: string): name is Part => name in PARTS;
const given = process.argv.slice(2);
const folder = given.find((name) => !isPart(name)) ?? join(cacheFolder(), "sdxl-generated-full");
if (!existsSync(join(folder, "goldens", "calls.json"))) {
  console.error(
    `${folder} has no goldens; write them with test/parity/record_full.py, or name another folder`,
  );
  process.exitCode = 2;
} else if (process.env.ONLY) await compare(process.env.ONLY as Part, folder);
else {
  const asked = given.filter(isPart);
  compareAll(asked.length > 0 ? asked : (Object.keys(PARTS) as Part[]), folder);
}
