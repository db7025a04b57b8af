/** @file The protocol: which pairs, which seeds, which numbers. Always the same, so that models compare. */

import { statSync } from "node:fs";
import { type IconRow, type Icons, loadIcons, plainCaption } from "../data/index.ts";
import { localPath } from "../hub/index.ts";
import { type LoadOptions, SDXL } from "../pipelines/index.ts";
import { bySeeds, DRAWN_TOGETHER, draw, evaluationsOf, type Sampling, variedCaptions } from "./draw.ts";
import { Judge } from "./judge.ts";
import { type Drawn, type SetScores, score } from "./score.ts";
import { type ReferenceOptions, Teacher } from "./teacher.ts";
import { vaePsnr } from "./vae.ts";

export type Split = IconRow["split"];

/** Splits of the dataset by the names that their scores have. */
const SETS = { heldout: "heldout-pair", seen: "train", style: "heldout-style" } as const;

export type SetName = keyof typeof SETS;

export interface EvalOptions
  extends Sampling,
    Pick<LoadOptions, "unet" | "loras" | "precision" | "onNotice"> {
  /** Model folder, checkpoint, or name of a model that was pulled. */
  model: string;
  /** Folder whose towers judge. Keep it the same for numbers that are compared. */
  judge: string;
  /** Icon dataset. */
  data: string;
  /** Default: held-out pairs and seen ones. */
  splits?: readonly Split[];
  /** Pictures of each split. Default: all that are held out, and as many seen pairs as held-out ones. */
  count?: number;
  /** Of the first caption; caption i has this + i. Default 0: others tell how much of a number is chance. */
  seed?: number;
  /** The model's own UNet to compare with, in many steps; default none. It draws with the same seeds. */
  reference?: Omit<ReferenceOptions, "seed">;
  onProgress?: (done: number, total: number) => void;
  /** Called with each finished set, for contact sheets; the reference's is called `<set>-teacher`. */
  onPictures?: (set: string, pictures: readonly { data: Uint8Array; label: string }[]) => Promise<void>;
  /** Called before pictures are made, with what the options may get wrong. */
  onWarnings?: (warnings: readonly string[]) => void;
}

export interface EvalResult extends Partial<Record<SetName, SetScores>> {
  model: string;
  /** Name of the model folder, or of the file with the UNet. */
  network: string;
  loras: readonly { name: string; strength: number }[];
  steps: number;
  guidance: number;
  sampler: string;
  schedule: string;
  /** Of the first caption. */
  seed: number;
  /** Of the network for one picture. */
  evaluations: number;
  seconds_per_picture: number;
  reference?: { steps: number; guidance: number; evaluations: number };
  /** Of decoded encodings of the first split's pictures, dB; none for a checkpoint. */
  vae_psnr?: number;
}

/** Judges a model on (concept, style) pairs of the icon dataset. */
export async function evaluate(options: EvalOptions): Promise<EvalResult> {
  const { splits = ["heldout-pair", "train"], seed = 0, onProgress, onPictures } = options;
  const model = localPath(options.model);
  const train = await loadIcons(options.data, ["train"]);
  const sets = await chosenSets(options, splits, train);
  await using judge = await Judge.load(options.judge);
  const { unet, loras, precision, onNotice } = options;
  await using sdxl = await SDXL.load(model, {
    unet,
    loras,
    precision,
    onNotice,
    steps: options.steps,
    expectedBatch: DRAWN_TOGETHER,
  });
  const side = sdxl.info.sampleSize * sdxl.info.vaeScaleFactor;
  if (judge.size !== train.size || judge.size !== side)
    throw new Error(
      `the judge ${options.judge} looks at ${judge.size} pixels, the pictures of ${options.data} have ` +
        `${train.size}, those of ${options.model} ${side}; all must be the same`,
    );
  const { defaults } = sdxl.info;
  const { steps = defaults.steps, guidance = defaults.guidance, sampler = defaults.sampler } = options;
  const schedule = options.schedule ?? defaults.schedule;
  options.onWarnings?.(sdxl.warnings({ steps, guidance }));
  await using teacher = options.reference && (await Teacher.load(model, { ...options.reference, seed }));

  const each = sets.map((set) => set.captions.length + variedCaptions(set.captions).length);
  const total = each.reduce((a, b) => a + b, 0) * (teacher ? 2 : 1);
  let done = 0;
  const progress = (count: number): void => {
    done += count;
    onProgress?.(done, total);
  };
  const scores: Partial<Record<SetName, SetScores>> = {};
  let seconds = 0;
  let settings = { model: "", loras: [] as readonly { name: string; strength: number }[] };
  for (const { name, captions, real, training } of sets) {
    const show = async (set: string, pictures: readonly Uint8Array[]) =>
      onPictures?.(
        set,
        pictures.map((data, i) => ({ data, label: captions[i] })),
      );
    let reference: Drawn | undefined;
    if (teacher) {
      const pictures = await teacher.pictures(captions, progress);
      await show(`${name}-teacher`, pictures);
      reference = { pictures, varied: bySeeds(await teacher.pictures(variedCaptions(captions), progress)) };
    }
    const sampling = { steps, guidance, sampler, schedule, seed };
    const started = performance.now();
    const made = await draw(sdxl, captions, sampling, progress);
    seconds += (performance.now() - started) / 1000;
    settings = { loras: [], ...made[0].settings };
    const varied = await draw(sdxl, variedCaptions(captions), sampling, progress);
    const drawn = { pictures: made.map((p) => p.data), varied: bySeeds(varied.map((p) => p.data)) };
    scores[name] = await score(judge, { captions, real, training, drawn, teacher: reference });
    await show(name, drawn.pictures);
  }
  return {
    model: options.model,
    network: settings.model,
    loras: settings.loras,
    steps,
    guidance,
    sampler: sampler.name,
    schedule,
    seed,
    evaluations: evaluationsOf({ steps, guidance }, sampler),
    seconds_per_picture: seconds / sets.reduce((n, set) => n + set.captions.length, 0),
    ...(teacher && {
      reference: {
        steps: teacher.steps,
        guidance: teacher.guidance,
        evaluations: evaluationsOf(teacher),
      },
    }),
    ...scores,
    ...(statSync(model).isDirectory() && { vae_psnr: await vaePsnr(model, sets[0].icons) }),
  };
}

interface ChosenSet {
  name: SetName;
  icons: Icons;
  captions: string[];
  real: Uint8Array[];
  training: { pictures: Uint8Array[]; own: Set<number> };
}

/** @throws when the dataset has too few pictures of a split. */
async function chosenSets(
  { data, count }: EvalOptions,
  splits: readonly Split[],
  train: Icons,
): Promise<ChosenSet[]> {
  const loaded = new Map<Split, Icons>([["train", train]]);
  for (const split of ["heldout-pair", ...splits] as const)
    if (!loaded.has(split)) loaded.set(split, await loadIcons(data, [split]));
  for (const split of ["train", ...splits] as const)
    if (loaded.get(split)!.length < 2)
      throw new Error(`${data}: the split ${split} has ${loaded.get(split)!.length} pictures; 2 are needed`);
  const heldout = loaded.get("heldout-pair")!.length;
  return (Object.keys(SETS) as SetName[])
    .filter((name) => splits.includes(SETS[name]))
    .map((name) => {
      const icons = loaded.get(SETS[name])!;
      const most = SETS[name] === "train" && heldout > 1 ? Math.min(heldout, icons.length) : icons.length;
      const indices = spread(icons.length, Math.min(count ?? most, most));
      const ids = new Set(indices.map((i) => icons.rows[i].id));
      // A model of the held-out style learned from that style.
      const learned = SETS[name] === "heldout-style" ? [train, icons] : [train];
      const rows = learned.flatMap((set) => set.rows);
      return {
        name,
        icons,
        captions: indices.map((i) => plainCaption(icons.rows[i])),
        real: indices.map((i) => icons.image(i)),
        training: {
          pictures: learned.flatMap((set) => set.rows.map((_, i) => set.image(i))),
          own: new Set(rows.flatMap(({ id }, i) => (ids.has(id) ? [i] : []))),
        },
      };
    });
}

/** `count` of `length` indices, evenly spread. */
function spread(length: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => Math.floor((i * length) / count));
}
