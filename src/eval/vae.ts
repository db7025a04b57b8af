/** @file How well the VAE restores pictures. S side of a picture. */

import { join } from "node:path";
import type { Icons } from "../data/index.ts";
import { graph, input, symbol } from "../graph/index.ts";
import { vaeConfig, vaeDecode, vaeEncode } from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { readJson, weightsFile, weightsOf } from "../pipelines/index.ts";
import { readPlanes, writePlanes } from "../platform/index.ts";
import { compile } from "../runtime/index.ts";
import { floats } from "../tensor/index.ts";
import { psnr } from "./metrics.ts";

const BATCH = 32;

/** PSNR of decoded encodings, from the mean of the posterior, in dB. `model` is a folder. */
export async function vaePsnr(model: string, data: Icons): Promise<number> {
  const folder = join(model, "vae");
  const config = vaeConfig(await readJson(join(folder, "config.json")));
  const S = data.size;
  const pictures = input("pictures", "float32", [symbol("B"), 3, S, S]);
  const latents = vaeEncode(rootScope(), config, pictures).slice(1, 0, config.latent_channels);
  const g = graph({ restored: vaeDecode(rootScope(), config, latents) });
  await using program = await compile(g, await weightsOf(g, { "": weightsFile(folder) }));
  const originals: Uint8Array[] = [];
  const restored: Uint8Array[] = [];
  for (let start = 0; start < data.length; start += BATCH) {
    const some = Array.from({ length: Math.min(BATCH, data.length - start) }, (_, i) =>
      data.image(start + i),
    );
    const feeds = floats([some.length, 3, S, S]);
    for (const [b, rgb] of some.entries()) writePlanes(rgb, feeds.data, b * 3 * S * S);
    const planes = (await program.run({ pictures: feeds })).restored.data as Float32Array;
    originals.push(...some);
    for (let b = 0; b < some.length; b++)
      restored.push(readPlanes(planes.subarray(b * 3 * S * S, (b + 1) * 3 * S * S)));
  }
  return psnr(originals, restored);
}
