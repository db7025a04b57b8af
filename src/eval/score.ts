/** @file The numbers of one set of pictures: against the real ones, against the teacher's, and among themselves. */

import { Generator } from "../tensor/index.ts";
import type { ImageFeatures, Judge } from "./judge.ts";
import {
  clipScore,
  frechetDistance,
  mean,
  nearestDistances,
  pairwiseDistance,
  pixelDistance,
  recallAt,
} from "./metrics.ts";

/** Captions that a picture is told from, its own included. */
const CAPTIONS = 100;
/** Pictures nearer to one of the training set are copies of it. */
const COPY = 0.02;

/** How well pictures fit the real ones and their captions. */
export interface QualityScores {
  /** Fréchet distance to the real pictures, on image-tower features. */
  fd: number;
  /** The same on centre crops of half the side, for sharpness. */
  patch_fd: number;
  clip_score: number;
  r_at_1: number;
  r_at_5: number;
  /** Mean distance in the judge's features of pictures of one caption with several seeds. */
  diversity: number;
}

export interface SetScores extends QualityScores {
  count: number;
  /** Mean distance of a picture to the nearest training picture, root mean square of pixels in [0, 1]. */
  nearest_neighbour: number;
  /** Share of pictures nearer than 0.02 to one. */
  copies: number;
  /** What the real pictures score under the same judge. */
  real: { clip_score: number; r_at_1: number; r_at_5: number; nearest_neighbour: number };
  /** r_at_5 as a share of the real pictures'. */
  r_at_5_of_real: number;
  /** Fréchet distances to the reference's pictures of the same captions and seeds. */
  fd_to_teacher?: number;
  patch_fd_to_teacher?: number;
  /** Mean distance to the reference's picture of the same caption and seed, root mean square of pixels. */
  distance_to_teacher?: number;
  /** What the reference's pictures score. */
  teacher?: QualityScores;
}

/** Pictures of the captions of a set, and of some of these with several seeds. */
export interface Drawn {
  pictures: readonly Uint8Array[];
  varied: readonly (readonly Uint8Array[])[];
}

export interface Scored {
  captions: readonly string[];
  real: readonly Uint8Array[];
  /** What the model may have learned from, and which of these is the real picture i, where one is. */
  training: { pictures: readonly Uint8Array[]; own: ReadonlySet<number> };
  drawn: Drawn;
  teacher?: Drawn;
}

export async function score(
  judge: Judge,
  { captions, real, training, drawn, teacher }: Scored,
): Promise<SetScores> {
  const texts = await judge.read(captions);
  const choices = captionChoices(captions);
  const told = (list: readonly ImageFeatures[]) => {
    const images = list.map((f) => f.embedding);
    return {
      clip_score: clipScore(images, texts),
      r_at_1: recallAt(1, images, texts, choices),
      r_at_5: recallAt(5, images, texts, choices),
    };
  };
  const truth = await seen(judge, real);
  const quality = async ({ varied }: Drawn, made: Seen): Promise<QualityScores> => ({
    fd: frechetDistance(features(made.whole), features(truth.whole)),
    patch_fd: frechetDistance(features(made.patches), features(truth.patches)),
    ...told(made.whole),
    diversity: await diversity(judge, varied),
  });
  const made = await seen(judge, drawn.pictures);
  const mine = await quality(drawn, made);
  const theirs = told(truth.whole);
  const nearest = nearestDistances(drawn.pictures, training.pictures);
  // A real picture of the training set would be its own neighbour.
  const others = training.pictures.filter((_, i) => !training.own.has(i));
  const scores: SetScores = {
    count: drawn.pictures.length,
    ...mine,
    nearest_neighbour: mean(nearest),
    copies: nearest.filter((d) => d < COPY).length / nearest.length,
    real: { ...theirs, nearest_neighbour: mean(nearestDistances(real, others)) },
    r_at_5_of_real: mine.r_at_5 / theirs.r_at_5,
  };
  if (!teacher) return scores;
  const reference = await seen(judge, teacher.pictures);
  return {
    ...scores,
    fd_to_teacher: frechetDistance(features(made.whole), features(reference.whole)),
    patch_fd_to_teacher: frechetDistance(features(made.patches), features(reference.patches)),
    distance_to_teacher: mean(drawn.pictures.map((p, i) => pixelDistance(p, teacher.pictures[i]))),
    teacher: await quality(teacher, reference),
  };
}

interface Seen {
  whole: ImageFeatures[];
  /** Of the middle. */
  patches: ImageFeatures[];
}

async function seen(judge: Judge, pictures: readonly Uint8Array[]): Promise<Seen> {
  const middles = pictures.map((p) => enlargedCentre(p, judge.size));
  return { whole: await judge.see(pictures), patches: await judge.see(middles) };
}

function features(list: readonly ImageFeatures[]): Float32Array[] {
  return list.map((f) => f.features);
}

async function diversity(judge: Judge, varied: Drawn["varied"]): Promise<number> {
  const distances: number[] = [];
  for (const pictures of varied) distances.push(pairwiseDistance(features(await judge.see(pictures))));
  return mean(distances);
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
