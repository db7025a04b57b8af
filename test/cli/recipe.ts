/** @file A recipe that trains in a moment. */

import { at, put } from "../data/temporary.ts";

export const TINY = { block_out_channels: [4, 4], layers_per_block: 1, norm_num_groups: 2, sample_size: 8 };

/** A recipe for a VAE of 8×8 pixels; the run and the pictures are in the test's folder. */
export function recipe(changes: object = {}): string {
  return put(
    "recipe.json",
    JSON.stringify({
      task: "vae",
      out: at("run"),
      data: { kind: "pictures", path: at("pictures"), size: 8 },
      steps: 4,
      batch: 2,
      microBatch: 2,
      learningRate: { peak: 1e-3 },
      logEvery: 1,
      config: { ...TINY, mid_block_add_attention: false },
      ...changes,
    }),
  );
}
