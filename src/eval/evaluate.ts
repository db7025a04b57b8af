/** @file The protocol: which pairs, which seeds, which numbers. Always the same, so that models compare. */

import { join } from "node:path";
import { type IconRow, type Icons, loadIcons, plainCaption } from "../data/index.ts";
import { graph, input, symbol } from "../graph/index.ts";
import { vaeConfig, vaeDecode, vaeEncode } from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { readJson, SDXL, weightsFile, weightsOf } from "../pipelines/index.ts";
import { readPlanes, writePlanes } from "../platform/index.ts";
import { compile } from "../runtime/index.ts";
import { floats, Generator } from "../tensor/index.ts";
import { type ImageFeatures, Judge } from "./judge.ts";
import { clipScore, frechetDistance, mean, nearestDistances, psnr, recallAt } from "./metrics.ts";

/** Captions that a picture is told from, its own included. */
const CAPTIONS = 100;
/** Pictures generated side by side. */
const BATCH = 8;

export interface EvalOptions {
  /** Model folder. */
  model: string;
  /** Folder whose towers judge. Keep it the same for numbers that are compared. */
  judge: string;
  /** Icon dataset. */
  data: string;
  /** Default: the model's. */
  steps?: number;
  /** Default: the model's. */
  guidance?: number;
  /** Pairs of each kind; default all that are held out, and as many seen ones. */
  count?: number;
  onProgress?: (done: number, total: number) => void;
  /** Called with each finished set, for contact sheets. */
  onPictures?: (set: string, pictures: readonly { data: Uint8Array; label: string }[]) => Promise<void>;
}

export interface SetScores {
  count: number;
  /** Fréchet distance to the real pictures, on image-tower features. */
  fd: number;
  /** The same on centre crops of half the side, for sharpness. */
  patch_fd: number;
  clip_score: number;
  r_at_1: number;
  r_at_5: number;
  /** Mean distance of a picture to the nearest training picture, root mean square of pixels in [0, 1]. */
  nearest_neighbour: number;
  /** Share of pictures nearer than 0.02 to one. */
  copies: number;
  /** What the real pictures score under the same judge. */
  real: { clip_score: number; r_at_1: number; r_at_5: number; nearest_neighbour: number };
  /** r_at_5 as a share of the real pictures'. */
  r_at_5_of_real: number;
}

export interface EvalResult {
  model: string;
  steps: number;
  guidance: number;
  seconds_per_picture: number;
  heldout: SetScores;
  seen: SetScores;
  /** Of decoded encodings of the held-out pictures, dB. */
  vae_psnr: number;
}

/** Judges a model on held-out and on seen (concept, style) pairs of the icon dataset. */
export async function evaluate(options: EvalOptions): Promise<EvalResult> {
  const train = await loadIcons(options.data, ["train"]);
  const heldout = await loadIcons(options.data, ["heldout-pair"]);
  await using judge = await Judge.load(options.judge);
  await using sdxl = await SDXL.load(options.model, { steps: options.steps });
  const side = sdxl.info.sampleSize * sdxl.info.vaeScaleFactor;
  if (judge.size !== train.size || judge.size !== side)
    throw new Error(
      `the judge ${options.judge} looks at ${judge.size} pixels, the pictures of ${options.data} have ` +
        `${train.size}, those of ${options.model} ${side}; all must be the same`,
    );
  if (Math.min(train.length, heldout.length) < 2)
    throw new Error(
      `${options.data}: ${train.length} training and ${heldout.length} held-out pictures; 2 of each are needed`,
    );
  const { steps = sdxl.info.defaults.steps, guidance = sdxl.info.defaults.guidance } = options;
  const count = Math.min(options.count ?? heldout.length, heldout.length);
  const sets = { heldout: spread(heldout, count), seen: spread(train, count) };
  let done = 0;
  const scores: Partial<Record<"heldout" | "seen", SetScores>> = {};
  let generating = 0;
  for (const [name, data] of Object.entries(sets) as ["heldout" | "seen", Sets][]) {
    const captions = data.rows.map(plainCaption);
    const pictures: Uint8Array[] = [];
    for (let start = 0; start < count; start += BATCH) {
      const prompts = captions.slice(start, start + BATCH);
      const before = performance.now();
      const some = await sdxl.textToImage(prompts, { steps, guidance, seed: start });
      generating += performance.now() - before;
      pictures.push(...some.map((p) => p.data));
      done += some.length;
      options.onProgress?.(done, 2 * count);
    }
    scores[name] = await score(judge, data, captions, pictures, train);
    await options.onPictures?.(
      name,
      pictures.map((p, i) => ({ data: p, label: captions[i] })),
    );
  }
  return {
    model: options.model,
    steps,
    guidance,
    seconds_per_picture: generating / 1000 / (2 * count),
    heldout: scores.heldout!,
    seen: scores.seen!,
    vae_psnr: await vaePsnr(options.model, heldout),
  };
}

interface Sets {
  rows: IconRow[];
  pictures: Uint8Array[];
}

/** `count` entries, evenly spread. */
function spread(data: Icons, count: number): Sets {
  const indices = Array.from({ length: count }, (_, i) => Math.floor((i * data.length) / count));
  return { rows: indices.map((i) => data.rows[i]), pictures: indices.map((i) => data.image(i)) };
}

async function score(
  judge: Judge,
  real: Sets,
  captions: readonly string[],
  pictures: readonly Uint8Array[],
  train: Icons,
): Promise<SetScores> {
  const texts = await judge.read(captions);
  const choices = captionChoices(captions);
  const [made, truth] = [await judge.see(pictures), await judge.see(real.pictures)];
  const patches = async (list: readonly Uint8Array[]) =>
    features(await judge.see(list.map((p) => enlargedCentre(p, judge.size))));
  const told = (list: readonly ImageFeatures[]) => {
    const images = list.map((f) => f.embedding);
    return {
      clip_score: clipScore(images, texts),
      r_at_1: recallAt(1, images, texts, choices),
      r_at_5: recallAt(5, images, texts, choices),
    };
  };
  const all = train.rows.map((_, i) => train.image(i));
  // A real picture of the training set would be its own neighbour.
  const own = new Set(real.rows.map((row) => row.id));
  const others = all.filter((_, i) => !own.has(train.rows[i].id));
  const nearest = nearestDistances(pictures, all);
  const [mine, theirs] = [told(made), told(truth)];
  return {
    count: pictures.length,
    fd: frechetDistance(features(made), features(truth)),
    patch_fd: frechetDistance(await patches(pictures), await patches(real.pictures)),
    ...mine,
    nearest_neighbour: mean(nearest),
    copies: nearest.filter((d) => d < 0.02).length / nearest.length,
    real: { ...theirs, nearest_neighbour: mean(nearestDistances(real.pictures, others)) },
    r_at_5_of_real: mine.r_at_5 / theirs.r_at_5,
  };
}

function features(list: readonly ImageFeatures[]): Float32Array[] {
  return list.map((f) => f.features);
}

/** Each picture's own caption and 99 others with another text, drawn with a fixed seed. */
function captionChoices(captions: readonly string[]): number[][] {
  const g = new Generator(0);
  return captions.map((own, i) => {
    const others = captions.map((_, j) => j).filter((j) => captions[j] !== own);
    for (let k = 0; k < Math.min(CAPTIONS - 1, others.length); k++) {
      const from = k + g.integer(others.length - k); // Fisher & Yates
      [others[k], others[from]] = [others[from], others[k]];
    }
    return [i, ...others.slice(0, CAPTIONS - 1)];
  });
}

/** The middle half of a picture, each pixel twice as large. */
function enlargedCentre(rgb: Uint8Array, size: number): Uint8Array {
  const out = new Uint8Array(rgb.length);
  const from = Math.floor(size / 4);
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++) {
      const source = ((from + (y >> 1)) * size + from + (x >> 1)) * 3;
      out.set(rgb.subarray(source, source + 3), (y * size + x) * 3);
    }
  return out;
}

/** How well the VAE restores pictures, from the mean of its posterior. */
async function vaePsnr(model: string, data: Icons): Promise<number> {
  const folder = join(model, "vae");
  const config = vaeConfig(await readJson(join(folder, "config.json")));
  const S = data.size;
  const pictures = input("pictures", "float32", [symbol("B"), 3, S, S]);
  const latents = vaeEncode(rootScope(), config, pictures).slice(1, 0, config.latent_channels);
  const g = graph({ restored: vaeDecode(rootScope(), config, latents) });
  await using program = await compile(g, await weightsOf(g, { "": weightsFile(folder) }));
  const originals: Uint8Array[] = [];
  const restored: Uint8Array[] = [];
  for (let start = 0; start < data.length; start += 32) {
    const some = Array.from({ length: Math.min(32, data.length - start) }, (_, i) => data.image(start + i));
    const feeds = floats([some.length, 3, S, S]);
    for (const [b, rgb] of some.entries()) writePlanes(rgb, feeds.data, b * 3 * S * S);
    const planes = (await program.run({ pictures: feeds })).restored.data as Float32Array;
    originals.push(...some);
    for (let b = 0; b < some.length; b++)
      restored.push(readPlanes(planes.subarray(b * 3 * S * S, (b + 1) * 3 * S * S)));
  }
  return psnr(originals, restored);
}
