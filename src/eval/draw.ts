/** @file Pictures of captions. Caption i has one seed, whoever draws it: models are compared on the same noise. */

import type { GeneratedPicture, GenerateOptions, SDXL } from "../pipelines/index.ts";

/** Pictures side by side. */
export const DRAWN_TOGETHER = 8;
/** Prompts, and seeds of each, whose pictures are compared with one another. */
const VARIED = 16;
const SEEDS = 4;

/** How pictures are sampled; what is left out is the model's own. */
export type Sampling = Pick<GenerateOptions, "steps" | "guidance" | "sampler" | "schedule">;

/** Caption i has seed `seed` + i; default 0. */
export async function draw(
  sdxl: SDXL,
  captions: readonly string[],
  { seed = 0, ...sampling }: Sampling & { seed?: number },
  onPictures?: (count: number) => void,
): Promise<GeneratedPicture[]> {
  const pictures: GeneratedPicture[] = [];
  for (let start = 0; start < captions.length; start += DRAWN_TOGETHER) {
    const some = captions.slice(start, start + DRAWN_TOGETHER);
    // Captions are read as in training.
    const options = { ...sampling, promptWeighting: "none", seed: seed + start } as const;
    pictures.push(...(await sdxl.textToImage(some, options)));
    onPictures?.(some.length);
  }
  return pictures;
}

/** Some of the captions, evenly spread, each several times in a row: what diversity is measured on. */
export function variedCaptions(captions: readonly string[]): string[] {
  const count = Math.min(VARIED, captions.length);
  return Array.from(
    { length: count * SEEDS },
    (_, i) => captions[Math.floor((Math.floor(i / SEEDS) * captions.length) / count)],
  );
}

/** The pictures of `variedCaptions`, one list per caption. */
export function bySeeds<T>(pictures: readonly T[]): T[][] {
  const groups: T[][] = [];
  for (let i = 0; i < pictures.length; i += SEEDS) groups.push(pictures.slice(i, i + SEEDS));
  return groups;
}

/** Network evaluations for one picture: guidance doubles those of the sampler, by default one a step. */
export function evaluationsOf(
  { steps, guidance }: { steps: number; guidance: number },
  sampler?: Sampling["sampler"],
): number {
  return (sampler?.evaluations?.(steps) ?? steps) * (guidance > 1 ? 2 : 1);
}
