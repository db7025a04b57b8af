/** @file Files in every format for the tiny SDXL folder, always the same; record_formats.py loads them. */

import { join } from "node:path";
import { type SamplingSettings, samplingMetadata, saveCheckpoint } from "../../src/pipelines/index.ts";
import { saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { changed, randomLora, TINY, unetTensors } from "../pipelines/tiny.ts";

const FOUR = { steps: 4, guidance: 1, spacing: "trailing", predictionType: "epsilon" } as const;

export const SETTINGS = {
  unet: FOUR,
  x0: { ...FOUR, steps: 1, predictionType: "sample" },
  lora: FOUR,
  lcm: { ...FOUR, sampler: "lcm" },
} as const satisfies Record<string, SamplingSettings>;

/** unet, x0, lora, lcm and checkpoint .safetensors. */
export async function writeFormats(folder: string): Promise<void> {
  const tensors = await unetTensors();
  const file = (name: string) => join(folder, `${name}.safetensors`);
  const [unet, x0] = [changed(tensors, 21), changed(tensors, 22)];
  await saveSafetensors(file("unet"), unet, samplingMetadata(SETTINGS.unet));
  await saveSafetensors(file("x0"), x0, samplingMetadata(SETTINGS.x0));
  for (const [name, lora] of Object.entries({ lora: { seed: 23 }, lcm: { seed: 24, rank: 4, alpha: 8 } })) {
    const metadata = samplingMetadata(SETTINGS[name as "lora" | "lcm"]);
    await saveLora(file(name), randomLora(tensors, lora), { metadata });
  }
  await saveCheckpoint(file("checkpoint"), TINY, unet, { settings: SETTINGS.unet });
}
