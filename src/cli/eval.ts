/** @file `fewstep eval`: judges a model. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import type { Split } from "../eval/index.ts";
import type { Precision } from "../pipelines/index.ts";
import { cacheFolder } from "../platform/index.ts";
import { SAMPLERS, SCHEDULES, type Schedule } from "../samplers/index.ts";
import { writableFolder } from "./files.ts";
import { collectLora, numberFrom, precisionOption, wholeNumber } from "./options.ts";
import { counted, startProgress } from "./progress.ts";

interface EvalOptions {
  model?: string;
  unet?: string;
  lora?: Record<string, number>;
  judge?: string;
  data?: string;
  steps?: number;
  guidance?: number;
  sampler?: string;
  schedule?: Schedule;
  precision: Precision;
  split?: Split;
  count?: number;
  seed?: number;
  reference: Reference | false;
  sheet?: string;
  cache: string;
  json?: boolean;
}

interface Reference {
  steps: number;
  guidance?: number;
}

const SPLITS: readonly Split[] = ["heldout-pair", "train", "heldout-style"];

export function evalCommand(program: Command): void {
  program
    .command("eval")
    .description("judge a model on pairs of the icon dataset, against the real pictures and its teacher's")
    .option(
      "--model <path>",
      "folder in diffusers layout, checkpoint file, or org/name once pulled (default: the bundled model)",
    )
    .option("--unet <file>", "weights in place of the model's UNet, with diffusers' names")
    .option("--lora <file[:strength]>", "adapter on the UNet; may be given more than once", collectLora)
    .option(
      "--judge <folder>",
      "folder with the image and text tower that judge (default: the bundled model's)",
    )
    .option("--data <folder>", "made by `fewstep data icons` (default: made in the cache folder)")
    .addOption(new Option("--split <name>", "(default: heldout-pair, and as much of train)").choices(SPLITS))
    .option("--steps <n>", "of the sampler (default: the model's)", wholeNumber(1, 1000))
    .option("--guidance <scale>", "classifier-free guidance (default: the model's)", numberFrom(0))
    .addOption(new Option("--sampler <name>", "(default: the model's)").choices(Object.keys(SAMPLERS)))
    .addOption(new Option("--schedule <name>", "(default: the model's)").choices(SCHEDULES))
    .addOption(precisionOption())
    .option("--count <n>", "pictures of a split (default: all that are held out)", wholeNumber(2, 1e6))
    .option(
      "--seed <n>",
      "of the first picture; picture i has seed + i (default: 0)",
      wholeNumber(0, 2 ** 32),
    )
    .addOption(
      new Option("--reference <steps[:guidance]>", "how the model's own UNet, the teacher, is sampled")
        .argParser(parseReference)
        .default({ steps: 32 }, "32, with the model's guidance"),
    )
    .option("--no-reference", "no comparison with the teacher, whose pictures take long the first time")
    .option("--sheet <folder>", "write contact sheets there")
    .option("--cache <folder>", "for fetched packages and the teacher's pictures", cacheFolder())
    .option("--json", "print one JSON object and nothing else")
    .action(evalModel);
}

/** `32`, or with guidance `32:4`. */
export function parseReference(text: string): Reference {
  const [, steps, guidance] = /^(\d+)(?::(\d+(?:\.\d+)?))?$/.exec(text.trim()) ?? [];
  if (!(Number(steps) >= 1 && Number(steps) <= 1000))
    throw new InvalidArgumentError('Give steps from 1 to 1000, or steps and guidance: "32:4".');
  return { steps: Number(steps), ...(guidance !== undefined && { guidance: Number(guidance) }) };
}

async function evalModel(options: EvalOptions): Promise<void> {
  const { json, sheet, cache, split, sampler, lora: loras } = options;
  if (sheet) writableFolder(sheet, `--sheet ${sheet}`);
  const progress = await startProgress(!json);
  const say = (sentence: string): void => {
    if (!json) console.error(`fewstep: ${sentence}`);
  };
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
      loras,
      sampler: sampler === undefined ? undefined : SAMPLERS[sampler],
      model: options.model ?? bundledModel(),
      judge: options.judge ?? join(bundledModel(), "judge"),
      data,
      splits: split && [split],
      reference: options.reference ? { ...options.reference, cache } : undefined,
      onProgress: (done, total) => progress.update("pictures", done, total),
      onNotice: say,
      onWarnings: (warnings) => warnings.forEach(say),
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
type Scores = NonNullable<Result["seen"]>;

function table(result: Result): string {
  const columns = (
    [
      ["held-out", result.heldout],
      ["seen", result.seen],
      ["held-out style", result.style],
    ] as const
  ).flatMap(([title, scores]) => (scores ? [{ title, scores }] : []));
  const line = (name: string, value: (s: Scores) => string | undefined): string[] => {
    const cells = columns.map(({ scores }) => value(scores)?.padStart(15));
    return cells.includes(undefined) ? [] : [name.padEnd(28) + cells.join("")];
  };
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
  const { network, loras, steps, guidance, evaluations, sampler, schedule, reference, vae_psnr } = result;
  const adapters = loras.map(({ name, strength }) => ` + ${name}:${strength}`).join("");
  return [
    `${result.model}: ${network}${adapters}, ${sampler} (${schedule}), ${counted(steps, "step")}, guidance ${guidance}: ` +
      `${counted(evaluations, "evaluation")}, ${(1000 * result.seconds_per_picture).toFixed(0)} ms a picture`,
    ...(reference
      ? [
          `teacher: its own UNet, ${counted(reference.steps, "step")}, guidance ${reference.guidance}: ` +
            counted(reference.evaluations, "evaluation"),
        ]
      : []),
    "".padEnd(28) + columns.map(({ title }) => title.padStart(15)).join(""),
    ...line("pictures", (s) => String(s.count)),
    ...line("FD", (s) => s.fd.toFixed(3)),
    ...line("  of the teacher", (s) => s.teacher?.fd.toFixed(3)),
    ...line("patch FD", (s) => s.patch_fd.toFixed(3)),
    ...line("  of the teacher", (s) => s.teacher?.patch_fd.toFixed(3)),
    ...line("FD to the teacher", (s) => s.fd_to_teacher?.toFixed(3)),
    ...line("patch FD to the teacher", (s) => s.patch_fd_to_teacher?.toFixed(3)),
    ...line("distance to the teacher", (s) => s.distance_to_teacher?.toFixed(4)),
    ...line("CLIP score", (s) => s.clip_score.toFixed(2)),
    ...line("  of the teacher", (s) => s.teacher?.clip_score.toFixed(2)),
    ...line("  of real pictures", (s) => s.real.clip_score.toFixed(2)),
    ...line("R@1", (s) => percent(s.r_at_1)),
    ...line("  of real pictures", (s) => percent(s.real.r_at_1)),
    ...line("R@5", (s) => percent(s.r_at_5)),
    ...line("  of real pictures", (s) => percent(s.real.r_at_5)),
    ...line("R@5 / real R@5", (s) => s.r_at_5_of_real.toFixed(3)),
    ...line("diversity", (s) => s.diversity.toFixed(3)),
    ...line("  of the teacher", (s) => s.teacher?.diversity.toFixed(3)),
    ...line("nearest training picture", (s) => s.nearest_neighbour.toFixed(4)),
    ...line("  of real pictures", (s) => s.real.nearest_neighbour.toFixed(4)),
    ...line("copies of training pictures", (s) => percent(s.copies)),
    ...(vae_psnr === undefined ? [] : [`VAE on real pictures: PSNR ${vae_psnr.toFixed(2)} dB`]),
  ].join("\n");
}
