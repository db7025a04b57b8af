/** @file The sizes that SDXL is told besides the prompt (Podell et al. 2023, §2.2), with the names of diffusers. */

/** Height and width, or top and left, in pixels. */
export type Pair = readonly [number, number];

export interface SizeConditioning {
  /** Of the picture before it was scaled: small ones look blurred. Default: the size of the picture. */
  originalSize?: Pair;
  /** Where the picture was cut out: off zero, its subject is not in the middle. Default [0, 0]. */
  cropsCoordsTopLeft?: Pair;
  /** Default: the size of the picture. */
  targetSize?: Pair;
  /** The same for the negative prompt. Where none of the three is given, those of the prompt. */
  negativeOriginalSize?: Pair;
  negativeCropsCoordsTopLeft?: Pair;
  negativeTargetSize?: Pair;
}

/** What the sizes are called where the settings of a picture are written. */
export const SIZE_TITLES: Readonly<Record<keyof SizeConditioning, string>> = {
  originalSize: "Original size",
  cropsCoordsTopLeft: "Crops coords top left",
  targetSize: "Target size",
  negativeOriginalSize: "Negative original size",
  negativeCropsCoordsTopLeft: "Negative crops coords top left",
  negativeTargetSize: "Negative target size",
};

/** Those of some options that are sizes, and given. */
export function sizesIn(options: SizeConditioning): SizeConditioning {
  const names = Object.keys(SIZE_TITLES) as (keyof SizeConditioning)[];
  return Object.fromEntries(names.flatMap((name) => (options[name] ? [[name, options[name]]] : [])));
}

/** What the UNet takes as `time_ids`: original size, crop corner, target size, for prompt and negative prompt. */
export function timeIds(options: SizeConditioning, size: Pair): { positive: number[]; negative: number[] } {
  const {
    originalSize = size,
    cropsCoordsTopLeft = [0, 0],
    targetSize = size,
    negativeOriginalSize,
    negativeCropsCoordsTopLeft,
    negativeTargetSize,
  } = options;
  const positive = [...originalSize, ...cropsCoordsTopLeft, ...targetSize];
  const own = negativeOriginalSize ?? negativeCropsCoordsTopLeft ?? negativeTargetSize;
  const negative = own
    ? [
        ...(negativeOriginalSize ?? originalSize),
        ...(negativeCropsCoordsTopLeft ?? [0, 0]),
        ...(negativeTargetSize ?? targetSize),
      ]
    : positive;
  for (const ids of [positive, negative])
    if (ids.length !== 6 || !ids.every((v) => Number.isFinite(v) && v >= 0))
      throw new Error(
        `original size, crop corner and target size are ${ids.join(", ")}; each is two numbers from 0`,
      );
  return { positive, negative };
}
