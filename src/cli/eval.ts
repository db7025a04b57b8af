/** @file `fewstep eval`: judges a model. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { cacheFolder } from "./data.ts";
import { writableFolder } from "./files.ts";
import { numberFrom, wholeNumber } from "./options.ts";
import { startProgress } from "./progress.ts";

interface EvalOptions {
  model?: string;
  judge?: string;
  data?: string;
  steps?: number;
  guidance?: number;
  count?: number;
  sheet?: string;
  cache: string;
  json?: boolean;
}

export function evalCommand(program: Command): void {
  program
    .command("eval")
    .description("judge a model on held-out and seen pairs of the icon dataset")
    .option("--model <folder>", "in diffusers layout (default: the bundled model)")
    .option("--judge <folder>", "model whose towers judge (default: the bundled model)")
    .option("--data <folder>", "made by `fewstep data icons` (default: made in the cache folder)")
    .option("--steps <n>", "network evaluations (default: the model's)", wholeNumber(1, 1000))
    .option("--guidance <scale>", "classifier-free guidance (default: the model's)", numberFrom(0))
    .option("--count <n>", "pairs of each kind (default: all held-out pairs)", wholeNumber(2, 1e6))
    .option("--sheet <folder>", "write contact sheets there")
    .option("--cache <folder>", "for fetched packages", cacheFolder())
    .option("--json", "print one JSON object and nothing else")
    .action(evalModel);
}

async function evalModel(options: EvalOptions): Promise<void> {
  const { json, sheet, cache } = options;
  if (sheet) writableFolder(sheet, `--sheet ${sheet}`);
  const progress = await startProgress(!json);
  try {
    const { bundledModel } = await import("../index.node.ts");
    const { evaluate } = await import("../eval/index.ts");
    const { buildIcons, contactSheet } = await import("../data/index.ts");
    const { atomicWrite } = await import("../platform/index.ts");
    const data = options.data ?? join(cache, "icons-64");
    if (options.data === undefined && !existsSync(join(data, "images.safetensors"))) {
      progress.update("fetching the icon sets");
      const onProgress = (done: number, total: number): void => progress.update("rendering", done, total);
      await buildIcons({ out: data, size: 64, cache, onProgress });
    }
    const result = await evaluate({
      ...options,
      model: options.model ?? bundledModel(),
      judge: options.judge ?? bundledModel(),
      data,
      onProgress: (done, total) => progress.update("pictures", done, total),
      onPictures: async (set, pictures) => {
        if (!sheet) return;
        const side = Math.sqrt(pictures[0].data.length / 3);
        const some = pictures.slice(0, 96).map((p) => ({ ...p, width: side, height: side }));
        await atomicWrite(join(sheet, `${set}.png`), await contactSheet(some, { columns: 12 }));
      },
    });
    progress.stop();
    console.log(json ? JSON.stringify(result) : table(result));
  } finally {
    progress.stop();
  }
}

type Result = Awaited<ReturnType<typeof import("../eval/index.ts").evaluate>>;

function table(result: Result): string {
  const { heldout, seen } = result;
  const line = (name: string, value: (s: Result["seen"]) => string): string =>
    `${name.padEnd(28)}${value(heldout).padStart(10)}${value(seen).padStart(10)}`;
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
  return [
    `${result.model}: ${result.steps} steps, guidance ${result.guidance}, ` +
      `${(1000 * result.seconds_per_picture).toFixed(0)} ms a picture`,
    `${"".padEnd(28)}${"held-out".padStart(10)}${"seen".padStart(10)}`,
    line("pictures", (s) => String(s.count)),
    line("FD", (s) => s.fd.toFixed(3)),
    line("patch FD", (s) => s.patch_fd.toFixed(3)),
    line("CLIP score", (s) => s.clip_score.toFixed(2)),
    line("  of real pictures", (s) => s.real.clip_score.toFixed(2)),
    line("R@1", (s) => percent(s.r_at_1)),
    line("  of real pictures", (s) => percent(s.real.r_at_1)),
    line("R@5", (s) => percent(s.r_at_5)),
    line("  of real pictures", (s) => percent(s.real.r_at_5)),
    line("R@5 / real R@5", (s) => s.r_at_5_of_real.toFixed(3)),
    line("nearest training picture", (s) => s.nearest_neighbour.toFixed(4)),
    line("  of real pictures", (s) => s.real.nearest_neighbour.toFixed(4)),
    line("copies of training pictures", (s) => percent(s.copies)),
    `VAE on held-out pictures: PSNR ${result.vae_psnr.toFixed(2)} dB`,
  ].join("\n");
}
