/**
 * @file The reference of a distilled model: pictures of the model's own UNet in many steps, with guidance. They cost
 * far more than those that are judged, so they are kept on disk.
 */

import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { SDXL, weightsFile } from "../pipelines/index.ts";
import { makeFolder, removeAbandoned, version } from "../platform/index.ts";
import { tensor } from "../tensor/index.ts";
import { SafetensorsFile, saveSafetensors } from "../weights/index.ts";
import { DRAWN_TOGETHER, draw } from "./draw.ts";
import { modelHash } from "./hash.ts";

export interface ReferenceOptions {
  steps: number;
  /** Default: the model's. */
  guidance?: number;
  /** Of the first caption; default 0. */
  seed?: number;
  /** Folder in which pictures are kept; default none. */
  cache?: string;
}

/** Changes when pictures are kept in another way. */
const FORMAT = 2;

export class Teacher implements AsyncDisposable {
  readonly steps: number;
  readonly guidance: number;
  private readonly sdxl: SDXL;
  private readonly seed: number;
  /** Hash of the model. */
  private readonly identity: string;
  private readonly cache?: string;

  private constructor(sdxl: SDXL, identity: string, { steps, guidance, seed = 0, cache }: ReferenceOptions) {
    this.sdxl = sdxl;
    this.identity = identity;
    this.steps = steps;
    this.guidance = guidance ?? sdxl.info.defaults.guidance;
    this.seed = seed;
    this.cache = cache;
  }

  /** Loads a model with its own UNet, whatever few-step weights it brings along. */
  static async load(model: string, options: ReferenceOptions): Promise<Teacher> {
    const single = statSync(model).isFile();
    const own = single ? {} : { unet: weightsFile(join(model, "unet")) };
    const sdxl = await SDXL.load(model, { ...own, expectedBatch: DRAWN_TOGETHER });
    if (sdxl.info.distilled !== undefined) {
      await sdxl.dispose();
      throw new Error(
        `${model} is distilled itself, and no reference for others; name the model that it was made from, ` +
          "with these weights on it, or ask for no reference",
      );
    }
    return new Teacher(sdxl, await modelHash(model), options);
  }

  /** Pictures of captions, caption i with seed `seed` + i: from the cache, or drawn and put there. */
  async pictures(captions: readonly string[], onPictures?: (count: number) => void): Promise<Uint8Array[]> {
    const { steps, guidance, seed } = this;
    const side = this.sdxl.info.sampleSize * this.sdxl.info.vaeScaleFactor;
    const path = this.cache && join(this.cache, `teacher-${this.key(captions)}.safetensors`);
    const shape = [captions.length, side, side, 3];
    const kept = path && (await readPictures(path, shape));
    if (kept) {
      onPictures?.(captions.length);
      return kept;
    }
    const drawn = await draw(this.sdxl, captions, { steps, guidance, seed }, onPictures);
    const pictures = drawn.map((picture) => picture.data);
    if (path) await writePictures(path, shape, pictures);
    return pictures;
  }

  /** Of everything that decides the pictures. */
  private key(captions: readonly string[]): string {
    const { sampler, schedule } = this.sdxl.info.defaults;
    const { steps, guidance, seed, identity } = this;
    const parts = [FORMAT, version(), identity, steps, guidance, seed, sampler.name, schedule, captions];
    return createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 32);
  }

  async dispose(): Promise<void> {
    await this.sdxl.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

/** Undefined when there is no such file, or when its content is not what was written. */
async function readPictures(path: string, shape: readonly number[]): Promise<Uint8Array[] | undefined> {
  if (!existsSync(path)) return undefined;
  try {
    await using file = await SafetensorsFile.open(path);
    const { dtype, shape: found, data } = await file.read("pictures");
    if (
      dtype !== "uint8" ||
      found.join() !== shape.join() ||
      file.metadata.sha256 !== sha256(data as Uint8Array)
    )
      return undefined;
    const bytes = data.length / shape[0];
    return Array.from({ length: shape[0] }, (_, i) =>
      (data as Uint8Array).subarray(i * bytes, (i + 1) * bytes),
    );
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code) throw error; // of the system: the file may be sound
    return undefined;
  }
}

async function writePictures(
  path: string,
  shape: readonly number[],
  pictures: readonly Uint8Array[],
): Promise<void> {
  const data = new Uint8Array(shape.reduce((n, d) => n * d, 1));
  for (const [i, picture] of pictures.entries()) data.set(picture, i * picture.length);
  makeFolder(dirname(path));
  removeAbandoned(path);
  await saveSafetensors(path, { pictures: tensor("uint8", shape, data) }, { sha256: sha256(data) });
}

function sha256(data: Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}
