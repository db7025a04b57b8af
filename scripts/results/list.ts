/** @file Which configurations the results page compares: a JSON file, checked. */

import { readFile } from "node:fs/promises";
import { z } from "zod";
import { SAMPLERS, SPACINGS } from "../../src/samplers/index.ts";

const steps = z.int().min(1).max(1000);
const guidance = z.number().min(0);

/** Letters and digits of a label, for the name of its record. */
export const slug = (label: string): string => label.toLowerCase().replace(/[^a-z0-9]+/g, "-");

const configuration = z.strictObject({
  /** First cell of its row. */
  label: z.string().min(1),
  /** Line in the plots; rows without one are in the table only. */
  series: z.string().optional(),
  /** Default: the model's own. */
  unet: z.string().optional(),
  /** Files and strengths. */
  loras: z.record(z.string(), z.number()).optional(),
  /** What is left out is what the files carry, or the model's own. */
  steps: steps.optional(),
  guidance: guidance.optional(),
  sampler: z.enum(Object.keys(SAMPLERS)).optional(),
  spacing: z.enum(SPACINGS).optional(),
});

const table = z.strictObject({
  title: z.string().min(1),
  /** Of image files. */
  name: z.string().regex(/^[a-z][a-z0-9-]*$/, "give lower-case letters, digits and hyphens"),
  /** Default: that of the whole list. */
  model: z.string().optional(),
  split: z.enum(["heldout-pair", "train", "heldout-style"]).default("heldout-pair"),
  /** Pictures; default all of the split. */
  count: z.int().min(2).optional(),
  configurations: z
    .array(configuration)
    .min(1)
    .refine((rows) => new Set(rows.map(({ label }) => slug(label))).size === rows.length, {
      error: "two labels have the same letters and digits: their records would be one file",
    }),
});

const list = z.strictObject({
  model: z.string(),
  judge: z.string(),
  data: z.string(),
  /** How the model's own UNet, the teacher, is sampled. */
  reference: z.strictObject({ steps, guidance: guidance.optional() }),
  /** Prompts on a contact sheet. */
  sheet: z.int().min(1).max(24).default(10),
  tables: z.array(table).min(1),
});

export type ResultsList = z.infer<typeof list>;
export type Table = z.infer<typeof table>;
export type Configuration = z.infer<typeof configuration>;

/** @throws one sentence that names the field. */
export async function readList(path: string): Promise<ResultsList> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw error.code === "ENOENT" ? new Error(`${path}: no such file`, { cause: error }) : error;
  });
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new Error(`${path} is not valid JSON: ${(error as Error).message}`, { cause: error });
  }
  const { data, error } = list.safeParse(json);
  if (data) return data;
  const [{ path: field, message }] = error.issues;
  throw new Error(`${path}: ${field.join(".") || "the file"}: ${message}`);
}
