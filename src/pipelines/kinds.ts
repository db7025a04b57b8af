/** @file Whether a weights file holds what it was given as. */

import { basename } from "node:path";
import {
  kindText,
  type SafetensorsFile,
  SDXL_FAMILY,
  type WeightKind,
  weightContent,
} from "../weights/index.ts";

/** Option of the command line that a kind of file is for. */
export const OPTIONS: Partial<Record<WeightKind, string>> = {
  checkpoint: "--model",
  unet: "--unet",
  lora: "--lora",
  vae: "--vae",
  "tiny-vae": "--vae",
};

const WHERE: Partial<Record<WeightKind, string>> = {
  lora: "give it as a LoRA",
  unet: "give it as the UNet",
  checkpoint: "give it as the model",
  vae: "give it as the VAE",
  "tiny-vae": "give it as the VAE",
};

/** @throws a sentence when the file holds another known kind of weights, or those of another family of models. */
export function expectKind(file: SafetensorsFile, ...kinds: readonly WeightKind[]): WeightKind {
  const { kind, text, family } = weightContent(file.entries);
  const of = family === undefined ? "" : ` of ${family}`;
  if (kinds.includes(kind)) {
    if (family === undefined || family === SDXL_FAMILY) return kind;
    throw new Error(`${file.path} is ${text}${of}; fewstep runs models of the SDXL family`);
  }
  if (kind === "unknown" && kinds[0] !== "checkpoint") return kind;
  const wrong = `${file.path} is ${text}${family === SDXL_FAMILY ? "" : of}, not ${kindText(kinds[0])}`;
  throw new Error([wrong, WHERE[kind] ?? []].flat().join("; "));
}

/** `a/b.safetensors` → `b` */
export function stem(path: string): string {
  return basename(path).replace(/\.safetensors$/, "");
}
