/**
 * @file Judges one configuration, once: its record is kept beside the page, with the hashes of all files that decided it,
 * and holds as long as those that are still there are the same.
 */

import { existsSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import sharp from "sharp";
import { z } from "zod";
import { DRAWN_TOGETHER, draw, type Sampling } from "../../src/eval/draw.ts";
import { type EvalResult, evaluate, modelHash, type SetScores } from "../../src/eval/index.ts";
import { readJson, SDXL, weightsFile } from "../../src/pipelines/index.ts";
import { atomicWrite, fileHash, version } from "../../src/platform/index.ts";
import { SAMPLERS } from "../../src/samplers/index.ts";
import { type Configuration, type ResultsList, slug, type Table } from "./list.ts";

/** Changes when results are kept in another way. */
const FORMAT = 2;
/** Splits of the dataset by what their scores are called. */
const SETS = { "heldout-pair": "heldout", train: "seen", "heldout-style": "style" } as const;

export interface Measured {
  result: EvalResult;
  scores: SetScores;
  /** RGB of the first pictures, for the contact sheet. */
  pictures: { data: Uint8Array; label: string }[];
  /** SHA-256 of the files and folders that decided the numbers. */
  files: Readonly<Record<string, string>>;
}

/** A configuration with its numbers, or with the files that it lacks. */
export interface Row {
  configuration: Configuration;
  measured?: Measured;
  missing: string[];
}

export interface MeasureOptions {
  list: ResultsList;
  table: Table;
  /** Folder of the records. */
  records: string;
  /** For the teacher's pictures. */
  cache: string;
  /** In place of the table's. */
  count?: number;
  /** Measures speed anew, also where a record holds: numbers of one table should come from one quiet hour. */
  time?: boolean;
  onProgress?: (done: number, total: number) => void;
}

const recordSchema = z.object({
  asked: z.unknown(),
  /** Steps and guidance of the model's own UNet. */
  defaults: z.unknown(),
  files: z.record(z.string(), z.string()),
  result: z.looseObject({ steps: z.number() }),
  pictures: z.array(z.object({ webp: z.base64(), label: z.string() })),
});

type Kept = z.infer<typeof recordSchema>;

export async function measure(configuration: Configuration, options: MeasureOptions): Promise<Row> {
  const { list, table, cache, onProgress } = options;
  const { unet, loras, sampler, steps, guidance, spacing } = configuration;
  const model = table.model ?? list.model;
  const set = SETS[table.split];
  const path = join(options.records, `${table.name}-${slug(configuration.label)}.json`);
  const needed = [model, list.judge, list.data, ...(unet ? [unet] : []), ...Object.keys(loras ?? {})];
  const present = needed.filter((file) => existsSync(file) && (file !== model || isWhole(file)));
  const missing = needed.filter((file) => !present.includes(file));
  const now = {
    asked: whatIsAsked(configuration, options),
    defaults: await defaultsOf(model),
    files: await hashes(present, list),
  };
  const record = await readRecord(path);
  const known = record && holds(record, now, needed) ? record : undefined;
  if (known && (missing.length > 0 || !options.time))
    return { configuration, measured: await measuredOf(known, set), missing: [] };
  if (missing.length > 0) return { configuration, missing };

  const count = options.count ?? table.count;
  // Few-step weights that the model folder lists must not step in.
  const network = unet ?? (statSync(model).isDirectory() ? weightsFile(join(model, "unet")) : undefined);
  const sampling = {
    ...{ steps, guidance, schedule: spacing },
    sampler: sampler === undefined ? undefined : SAMPLERS[sampler],
  };
  if (known) {
    const how = { unet: network, loras, steps, expectedBatch: DRAWN_TOGETHER };
    await using sdxl = await SDXL.load(model, how);
    known.result.seconds_per_picture = await secondsAPicture(sdxl, known, sampling);
    await save(path, known);
    return { configuration, measured: await measuredOf(known, set), missing };
  }
  const pictures: Kept["pictures"] = [];
  const result = await evaluate({
    ...{ model, unet: network, loras, count, onProgress, ...sampling },
    ...{ judge: list.judge, data: list.data, splits: [table.split] },
    reference: { ...list.reference, cache },
    onPictures: async (name, made) => {
      if (name !== set) return;
      for (const { data, label } of spread(made, list.sheet))
        pictures.push({ webp: (await webpOf(data)).toString("base64"), label });
    },
  });
  const made: Kept = { ...now, result: { ...result }, pictures };
  await save(path, made);
  return { configuration, measured: await measuredOf(made, set), missing };
}

async function save(path: string, record: Kept): Promise<void> {
  await atomicWrite(path, `${JSON.stringify(record, null, 1)}\n`);
}

/** Batches that are timed, of which the median counts, after one that is not. */
const BATCHES = 5;

/** Of the prompts of the contact sheet, drawn as `evaluate` draws. */
async function secondsAPicture(sdxl: SDXL, { pictures }: Kept, sampling: Sampling): Promise<number> {
  const captions = Array.from({ length: DRAWN_TOGETHER }, (_, i) => pictures[i % pictures.length].label);
  const times: number[] = [];
  for (let i = 0; i <= BATCHES; i++) {
    const started = performance.now();
    await draw(sdxl, captions, sampling);
    if (i > 0) times.push((performance.now() - started) / 1000 / captions.length);
  }
  return times.sort((a, b) => a - b)[BATCHES >> 1];
}

/** Whether a model has its UNet: a folder that training has just begun has not. */
function isWhole(model: string): boolean {
  if (!statSync(model).isDirectory()) return true;
  try {
    weightsFile(join(model, "unet"));
    return true;
  } catch {
    return false;
  }
}

/** Whether a record is of the same question, and of the files that are still there. */
function holds(
  record: Kept,
  { asked, defaults, files }: Pick<Kept, "asked" | "defaults" | "files">,
  needed: readonly string[],
): boolean {
  return (
    isDeepStrictEqual(record.asked, asked) &&
    (defaults === undefined || isDeepStrictEqual(record.defaults, defaults)) &&
    needed.every((file) => file in record.files) &&
    Object.entries(files).every(([file, hash]) => record.files[file] === hash)
  );
}

/** Steps and guidance of the own UNet of a model folder that is there. */
async function defaultsOf(model: string): Promise<unknown> {
  const file = join(model, "model_index.json");
  if (!existsSync(file)) return undefined;
  const { fewstep } = await readJson(file);
  const { steps, guidance } = (fewstep ?? {}) as Record<string, unknown>;
  return JSON.parse(JSON.stringify({ steps, guidance }));
}

/** All that decides the numbers beside the content of files, as JSON. */
function whatIsAsked(configuration: Configuration, { list, table, count }: MeasureOptions): unknown {
  const { label: _, series: __, ...sampling } = configuration;
  const { split } = table;
  const asked = {
    sampling,
    split,
    count: count ?? table.count,
    sheet: list.sheet,
    reference: list.reference,
  };
  return JSON.parse(JSON.stringify({ format: [FORMAT, version()], ...asked }));
}

/** Of files, and of what counts in the folders of models, the judge and the data. */
async function hashes(paths: readonly string[], list: ResultsList): Promise<Record<string, string>> {
  const hashed = paths.map(async (path) => [path, await hashOf(path, list)] as const);
  return Object.fromEntries(await Promise.all(hashed));
}

async function hashOf(path: string, { judge, data }: ResultsList): Promise<string> {
  if (path === data) return fileHash(join(data, "images.safetensors"));
  if (path === judge) return modelHash(judge, ["image_encoder", "text_encoder_2", "tokenizer_2"]);
  return modelHash(path);
}

/** Undefined when there is no such file, or when it is not what was written. */
async function readRecord(path: string): Promise<Kept | undefined> {
  if (!existsSync(path)) return undefined;
  try {
    return recordSchema.parse(JSON.parse(await readFile(path, "utf8")));
  } catch {
    return undefined;
  }
}

async function measuredOf({ result, pictures, files }: Kept, set: keyof EvalResult): Promise<Measured> {
  const shown = pictures.map(async ({ webp, label }) => {
    const data = await sharp(Buffer.from(webp, "base64")).removeAlpha().raw().toBuffer();
    return { data, label };
  });
  return {
    result: result as unknown as EvalResult,
    scores: result[set] as SetScores,
    pictures: await Promise.all(shown),
    files,
  };
}

/** Of a square RGB picture. */
function webpOf(data: Uint8Array): Promise<Buffer> {
  const side = Math.sqrt(data.length / 3);
  return sharp(data, { raw: { width: side, height: side, channels: 3 } })
    .webp({ quality: 90 })
    .toBuffer();
}

function spread<T>(items: readonly T[], count: number): T[] {
  const some = Math.min(count, items.length);
  return Array.from({ length: some }, (_, i) => items[Math.floor((i * items.length) / some)]);
}
