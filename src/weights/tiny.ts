/** @file Names of TAESD's own files (Sequential modules) beside those of diffusers' AutoencoderTiny. */

import { KeyTable } from "./rename.ts";

/** More layers than TAESD's halves have, 15 and 19. */
const LAYERS = 64;

/**
 * Below `prefix` of one of its halves. The decoder's first layer, a clamp without parameters, is none in diffusers.
 * @param halves prefixes of encoder and decoder in the file; undefined for one that is elsewhere.
 */
export function tinyVaeTable(halves: { encoder?: string; decoder?: string }): KeyTable {
  const rules = Object.entries(halves).flatMap(([half, prefix]) =>
    Array.from({ length: LAYERS }, (_, i) => ({
      ours: `${half}.layers.${i}`,
      theirs: `${prefix}${half === "decoder" ? i + 1 : i}`,
    })),
  );
  return new KeyTable(rules);
}
