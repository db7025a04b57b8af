/** @file `fewstep generate`: a prompt becomes PNG files. */

import { randomInt } from "node:crypto";
import process from "node:process";
import { type Command, Option } from "commander";
import type {
  GeneratedPicture,
  LoadedPart,
  Precision,
  PromptWeighting,
  SizeConditioning,
  VaeTiling,
} from "../pipelines/index.ts";
import {
  PREDICTION_TYPES,
  type PredictionType,
  SAMPLERS,
  SCHEDULES,
  type Schedule,
} from "../samplers/index.ts";
import { PROMPT_WEIGHTINGS } from "../tokenizers/index.ts";
import { UsageError } from "./errors.ts";
import { outputTarget, picturePaths, type Target } from "./files.ts";
import {
  collectLora,
  numberFrom,
  parseBytes,
  parseCorner,
  parseSeed,
  parseSize,
  parseToldSize,
  precisionOption,
  type Size,
  wholeNumber,
} from "./options.ts";
import { counted, startProgress } from "./progress.ts";
import { DISPLAYS, type Display, detectDisplay, displayPicture } from "./terminal.ts";

interface GenerateOptions extends SizeConditioning {
  steps?: number;
  guidance?: number;
  guidanceRescale: number;
  negative: string;
  seed?: number | bigint;
  batch: number;
  size?: Size;
  sampler?: string;
  schedule?: Schedule;
  promptWeighting?: PromptWeighting;
  clipSkip?: number;
  vaeTiling?: VaeTiling;
  model?: string;
  unet?: string;
  vae?: string;
  predictionType?: PredictionType;
  lora?: Record<string, number>;
  loraDir?: string;
  device: "cpu" | "webgpu" | "cuda";
  precision: Precision;
  memoryLimit?: number;
  out?: string;
  show: Display | "auto";
  json?: boolean;
  quiet?: boolean;
  verbose?: boolean;
}

export function generateCommand(program: Command): void {
  program
    .command("generate")
    .description("make pictures from a sentence")
    .argument("<prompt...>", "what the picture shows")
    .option("--steps <n>", "of the sampler (default: the model's)", wholeNumber(1, 1000))
    .option("--guidance <scale>", "classifier-free guidance; 1 is off (default: the model's)", numberFrom(0))
    .option(
      "--guidance-rescale <share>",
      "how much contrast of guidance to take back, 0 to 1",
      numberFrom(0, 1),
      0,
    )
    .option("--negative <text>", "what the picture should not show", "")
    .option("--seed <n>", "of the noise; picture i of a batch takes seed + i (default: random)", parseSeed)
    .option("--batch <n>", "number of pictures", wholeNumber(1, 256), 1)
    .option("--size <WxH>", "pixels, one number for a square (default: the model's)", parseSize)
    .addOption(new Option("--sampler <name>", "(default: the model's)").choices(Object.keys(SAMPLERS)))
    .addOption(new Option("--schedule <name>", "of noise levels (default: the model's)").choices(SCHEDULES))
    .addOption(
      new Option(
        "--prompt-weighting <how>",
        '(words:1.3) in prompts; "none" also cuts long ones (default: comfy)',
      ).choices(PROMPT_WEIGHTINGS),
    )
    .option(
      "--clip-skip <n>",
      "layers of the text encoders to leave out, as diffusers counts",
      wholeNumber(0, 100),
    )
    .option("--original-size <WxH>", "told to the model (default: the picture's)", parseToldSize)
    .option("--crops-coords-top-left <top,left>", "told to the model (default: 0,0)", parseCorner)
    .option("--target-size <WxH>", "told to the model (default: the picture's)", parseToldSize)
    .option("--negative-original-size <WxH>", "the same for the negative prompt", parseToldSize)
    .option("--negative-crops-coords-top-left <top,left>", "the same", parseCorner)
    .option("--negative-target-size <WxH>", "the same", parseToldSize)
    .addOption(
      new Option("--vae-tiling <when>", "decode by tiles (default: auto, large pictures)").choices([
        "auto",
        "on",
        "off",
      ]),
    )
    .option(
      "--model <path>",
      "folder in diffusers layout, checkpoint file, or org/name once pulled (default: the bundled model)",
    )
    .option("--unet <file>", "weights in place of the model's UNet")
    .option("--vae <path>", "file or folder in place of the model's VAE; a tiny one (TAESDXL) is faster")
    .addOption(
      new Option("--prediction-type <name>", "of the UNet, where its file does not say it").choices(
        PREDICTION_TYPES,
      ),
    )
    .option("--lora <file[:strength]>", "adapter, a file or folder; may be given more than once", collectLora)
    .option("--lora-dir <folder>", "of adapters that the prompt may name: <lora:name:0.8>")
    .addOption(new Option("--device <name>").choices(["cpu", "webgpu", "cuda"]).default("cpu"))
    .addOption(precisionOption())
    .option("--memory-limit <size>", 'that may be used, "8G" (default: what is free)', parseBytes)
    .option("--out <path>", "file.png, or a folder/ (default: named after prompt and seed)")
    .addOption(new Option("--show <how>", "in the terminal").choices(["auto", ...DISPLAYS]).default("auto"))
    .option("--json", "print one JSON object and nothing else")
    .option("--quiet", "print file names only")
    .option("--verbose", "tell what memory is needed for")
    .action(generate);
}

/** Apart: where `await using` stands too, tsc 6.0 leaves the extension of a dynamic import as it is. */
const library = () => import("../index.node.ts");
const pipelines = () => import("../pipelines/index.ts");

async function generate(words: readonly string[], options: GenerateOptions): Promise<void> {
  const { negative, device, batch, guidanceRescale, seed = randomInt(2 ** 32) } = options;
  const target = outputTarget(options.out);
  const progress = await startProgress(!options.json && !options.quiet);
  try {
    const { SDXL, bundledModel } = await library();
    const { addedStrengths, planText, promptLoras } = await pipelines();
    progress.update("loading the model");
    const folder = options.model ?? bundledModel();
    const { unet, vae, predictionType, lora, steps: count, precision, memoryLimit } = options;
    const { prompts, loras: named } = await promptLoras([words.join(" ")], options.loraDir);
    const loras = Object.keys(named).length > 0 ? addedStrengths(lora ?? {}, named) : lora;
    const [prompt] = prompts;
    const say = (sentence: string): void => {
      if (!options.json && !options.quiet) console.error(`fewstep: ${sentence}`);
    };
    const onLoad = ({ name, i, total }: LoadedPart): void => progress.update(`loading the ${name}`, i, total);
    const how = { device, precision, memoryLimit, expectedBatch: batch, onNotice: say, onLoad };
    await using sdxl = await SDXL.load(folder, { ...how, unet, vae, predictionType, loras, steps: count });
    const { defaults } = sdxl.info;
    const { steps = defaults.steps, guidance = defaults.guidance, sampler = defaults.sampler.name } = options;
    const { schedule = defaults.schedule } = options;
    const { width, height } = sizeFor(sdxl.info, options.size);
    const { promptWeighting, clipSkip, vaeTiling } = options;
    const { originalSize, cropsCoordsTopLeft, targetSize } = options;
    const { negativeOriginalSize, negativeCropsCoordsTopLeft, negativeTargetSize } = options;
    const told = {
      ...{ promptWeighting, clipSkip, vaeTiling, originalSize, cropsCoordsTopLeft, targetSize },
      ...{ negativeOriginalSize, negativeCropsCoordsTopLeft, negativeTargetSize },
    };
    const warnings = sdxl.warnings({ steps, guidance, negativePrompt: negative, promptWeighting }, prompt);
    for (const warning of warnings) say(warning);
    if (options.verbose)
      for (const line of planText(sdxl.memoryPlan({ guidance, width, height, batch, vaeTiling })))
        console.error(`memory: ${line}`);
    const onStep = (step: { i: number; total: number }): void =>
      progress.update("denoising", step.i + 1, step.total);
    const settings = { steps, guidance, guidanceRescale, sampler, schedule, width, height, ...told };
    const images = await sdxl.textToImage(prompt, {
      ...settings,
      sampler: SAMPLERS[sampler],
      negativePrompt: negative,
      seed,
      batch,
      onStep,
    });

    const start = performance.now();
    const saved = await savePictures(images, target);
    progress.stop();
    const seconds = {
      ...sdxl.timings,
      save: (performance.now() - start) / 1000,
      total: performance.now() / 1000, // since the process started
    };
    const files = saved.map((picture) => picture.file);
    const seeds = images.map((image) => image.seed);
    if (options.json) {
      const { model, loras } = images[0].settings;
      const common = { prompt, negative, model, loras, ...settings, device, warnings, seconds };
      printJson({ file: files[0], files, seed: seeds[0], seeds, ...common });
    } else if (options.quiet) console.log(files.join("\n"));
    else {
      showPictures(saved, options.show);
      console.error(
        `seed ${seeds[0]}, ${counted(steps, "step")}, guidance ${guidance}, ${width}×${height}: ${timesText(seconds)}`,
      );
    }
  } finally {
    progress.stop();
  }
}

function sizeFor(info: { sampleSize: number; vaeScaleFactor: number }, size?: Size): Size {
  const multiple = info.vaeScaleFactor;
  const side = info.sampleSize * multiple;
  const { width, height } = size ?? { width: side, height: side };
  if (width % multiple === 0 && height % multiple === 0) return { width, height };
  const nearest = [width, height].map((n) => Math.max(1, Math.round(n / multiple)) * multiple);
  throw new UsageError(
    `--size ${width}x${height}: both sides must be multiples of ${multiple} for this model; ` +
      `try ${nearest.join("x")}`,
  );
}

interface Saved {
  file: string;
  picture: GeneratedPicture;
  png: Uint8Array;
}

async function savePictures(pictures: readonly GeneratedPicture[], target: Target): Promise<Saved[]> {
  const { atomicWrite } = await import("../platform/index.ts");
  const { prompt } = pictures[0].settings;
  const files = picturePaths(
    target,
    prompt,
    pictures.map((picture) => picture.seed),
  );
  const saved: Saved[] = [];
  for (const [i, picture] of pictures.entries()) {
    const png = await picture.png();
    await atomicWrite(files[i], png);
    saved.push({ file: files[i], picture, png });
  }
  return saved;
}

/** Each picture, where the terminal can, and its file name. */
function showPictures(saved: readonly Saved[], show: Display | "auto"): void {
  const { isTTY = false, columns = 80 } = process.stdout;
  const colorDepth = isTTY ? process.stdout.getColorDepth() : 24;
  const terminal = { isTTY, columns, colorDepth, env: process.env };
  const display = show === "auto" ? detectDisplay(terminal) : show;
  for (const { file, picture, png } of saved) {
    process.stdout.write(displayPicture(display, picture, png, terminal));
    console.log(file);
  }
}

/** `1.2 s (load 0.60, encode 0.05, …)` */
function timesText({ total, ...parts }: Readonly<Record<string, number>>): string {
  const texts = Object.entries(parts).map(([part, value]) => `${part} ${value.toFixed(2)}`);
  return `${total.toFixed(1)} s (${texts.join(", ")})`;
}

/** Seeds beyond 2^53 are written as text: JSON readers would round them. */
function printJson(value: unknown): void {
  console.log(JSON.stringify(value, (_, v) => (typeof v === "bigint" ? String(v) : v)));
}
