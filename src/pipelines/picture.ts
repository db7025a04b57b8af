/** @file A picture that remembers how it was made. */

import { atomicWrite, encodePng, formatParameters, type Picture, version } from "../platform/index.ts";
import { SIZE_TITLES, type SizeConditioning, sizesIn } from "./conditioning.ts";
import type { EncodeOptions } from "./encode.ts";
import type { VaeTiling } from "./tiling.ts";

/** What the same picture is made from again. */
export interface PictureSettings extends EncodeOptions, SizeConditioning {
  prompt: string;
  negativePrompt: string;
  /** Of the sampler. */
  steps: number;
  guidance: number;
  /** φ; 0 is off. */
  guidanceRescale?: number;
  /** Of the picture itself; under the batch rule "stream", of the whole batch. */
  seed: number | bigint;
  /** Title of the sampler. */
  sampler: string;
  /** Title of the schedule of σ; undefined where timesteps are spaced as diffusers does. */
  schedule?: string;
  /** Name of the model folder, or of the file with its UNet. */
  model: string;
  /** Where it is not "auto". */
  vaeTiling?: VaeTiling;
  /** Adapters, with their strength on the text encoders where it is another. */
  loras?: readonly { name: string; strength: number; textStrength?: number }[];
}

function loraText({ name, strength, textStrength }: NonNullable<PictureSettings["loras"]>[number]): string {
  return `${name}: ${strength}${textStrength === undefined ? "" : ` (text ${textStrength})`}`;
}

export class GeneratedPicture implements Picture {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
  readonly settings: Readonly<PictureSettings>;

  constructor({ width, height, data }: Picture, settings: PictureSettings) {
    this.width = width;
    this.height = height;
    this.data = data;
    this.settings = settings;
  }

  get seed(): number | bigint {
    return this.settings.seed;
  }

  /** The settings as stable-diffusion-webui writes them. */
  get parameters(): string {
    const { prompt, negativePrompt, steps, sampler, schedule, guidance, guidanceRescale } = this.settings;
    const { seed, model, loras = [], promptWeighting, clipSkip, vaeTiling } = this.settings;
    const sizes = Object.entries(sizesIn(this.settings)).map(([name, [first, second]]) => {
      const title = SIZE_TITLES[name as keyof SizeConditioning];
      return [title, title.endsWith("size") ? `${second}x${first}` : `${first}, ${second}`];
    });
    return formatParameters(prompt, negativePrompt, {
      Steps: steps,
      Sampler: sampler,
      "Schedule type": schedule,
      "CFG scale": guidance,
      "CFG Rescale": guidanceRescale || undefined,
      Seed: seed,
      Size: `${this.width}x${this.height}`,
      Model: model,
      // webui counts from the last layer, diffusers from the one that SDXL takes
      "Clip skip": clipSkip ? clipSkip + 2 : undefined,
      "Prompt weighting": promptWeighting,
      ...Object.fromEntries(sizes),
      "VAE tiling": vaeTiling,
      Loras: loras.map(loraText).join(", ") || undefined,
      RNG: "CPU", // noise is that of torch's CPU generator
      Version: `fewstep ${version()}`,
    });
  }

  /** A PNG file with the settings in its `parameters` text chunk. */
  png(): Promise<Uint8Array> {
    return encodePng(this, [{ keyword: "parameters", text: this.parameters }]);
  }

  /** Writes the PNG file, whole or not at all; creates the folder. */
  async save(path: string): Promise<void> {
    await atomicWrite(path, await this.png());
  }
}
