/** @file Judges one configuration, once: results are kept on disk under a hash of everything that decides them. */

import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { type EvalResult, evaluate, modelHash, type SetScores } from "../../src/eval/index.ts";
import { readJson, weightsFile } from "../../src/pipelines/index.ts";
import { atomicWrite, fileHash, version } from "../../src/platform/index.ts";
import { SAMPLERS } from "../../src/samplers/index.ts";
import type { Configuration, ResultsList, Table } from "./list.ts";

/** Changes when results are kept in another way. */
const FORMAT = 1;
const SETS = { "heldout-pair": "heldout", train: "seen", "heldout-style": "style" } as const;

export interface Measured {
  result: EvalResult;
  scores: SetScores;
  /** RGB of the first pictures, for the contact sheet. */
  pictures: { data: Uint8Array; label: string }[];
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
  /** For results and for the teacher's pictures. */
  cache: string;
  /** In place of the table's. */
  count?: number;
  onProgress?: (done: number, total: number) => void;
}

const kept = z.object({
  result: z.looseObject({ steps: z.number() }),
  pictures: z.array(z.object({ data: z.base64(), label: z.string() })),
});

export async function measure(configuration: Configuration, options: MeasureOptions): Promise<Row> {
  const { list, table, cache, onProgress } = options;
  const { unet, loras, sampler, steps, guidance, spacing } = configuration;
  const model = table.model ?? list.model;
  const needed = [model, list.judge, list.data, ...(unet ? [unet] : []), ...Object.keys(loras ?? {})];
  const missing = needed.filter((path) => !existsSync(path));
  if (missing.length > 0) return { configuration, missing };

  const count = options.count ?? table.count;
  const { reference } = list;
  // Few-step weights that the model folder lists must not step in.
  const network = unet ?? (statSync(model).isDirectory() ? weightsFile(join(model, "unet")) : undefined);
  const path = join(cache, `${await keyOf(configuration, options)}.json`);
  const known = await readKept(path, SETS[table.split]);
  if (known) return { configuration, measured: known, missing };

  const pictures: Measured["pictures"] = [];
  const result = await evaluate({
    ...{ model, unet: network, loras, steps, guidance, schedule: spacing, count, onProgress },
    ...{ judge: list.judge, data: list.data, splits: [table.split] },
    sampler: sampler === undefined ? undefined : SAMPLERS[sampler],
    reference: { ...reference, cache },
    onPictures: async (set, made) => {
      if (set === SETS[table.split]) pictures.push(...spread(made, list.sheet));
    },
  });
  const text = pictures.map(({ data, label }) => ({ data: Buffer.from(data).toString("base64"), label }));
  await atomicWrite(path, JSON.stringify({ result, pictures: text }));
  return { configuration, measured: { result, scores: result[SETS[table.split]]!, pictures }, missing };
}

/** Of options, and of the content of all files that are read. */
async function keyOf(configuration: Configuration, options: MeasureOptions): Promise<string> {
  const { list, table } = options;
  const { label: _, series: __, unet, loras = {}, ...sampling } = configuration;
  const model = table.model ?? list.model;
  const parts = {
    format: [FORMAT, version()],
    files: {
      model: await modelHash(model),
      judge: await modelHash(list.judge, ["image_encoder", "text_encoder_2", "tokenizer_2"]),
      data: [
        await fileHash(join(list.data, "images.safetensors")),
        await fileHash(join(list.data, "metadata.jsonl")),
      ],
      unet: unet && (await fileHash(unet)),
      loras: await Promise.all(
        Object.entries(loras).map(async ([file, strength]) => [await fileHash(file), strength]),
      ),
    },
    asked: { ...sampling, split: table.split, count: options.count ?? table.count, sheet: list.sheet },
    reference: list.reference,
    defaults: statSync(model).isDirectory() && (await defaultsOf(model)),
  };
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 32);
}

/** Steps and guidance of the model's own UNet. */
async function defaultsOf(model: string): Promise<unknown> {
  const { fewstep } = await readJson(join(model, "model_index.json"));
  const { steps, guidance } = (fewstep ?? {}) as Record<string, unknown>;
  return { steps, guidance };
}

/** Undefined when there is no such file, or when it is not what was written. */
async function readKept(path: string, set: "heldout" | "seen" | "style"): Promise<Measured | undefined> {
  if (!existsSync(path)) return undefined;
  try {
    const { result, pictures } = kept.parse(JSON.parse(await readFile(path, "utf8")));
    const scores = result[set] as SetScores | undefined;
    if (scores === undefined || typeof scores.fd !== "number") return undefined;
    return {
      result: result as unknown as EvalResult,
      scores,
      pictures: pictures.map(({ data, label }) => ({ data: Buffer.from(data, "base64"), label })),
    };
  } catch {
    return undefined;
  }
}

function spread<T>(items: readonly T[], count: number): T[] {
  const some = Math.min(count, items.length);
  return Array.from({ length: some }, (_, i) => items[Math.floor((i * items.length) / some)]);
}
