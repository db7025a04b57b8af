/**
 * @file Few-step weights that a model folder brings along, by step count. model_index.json lists them in an entry
 * that diffusers ignores: `"fewstep": { "lightning": { "default": 4, "files": { "4": "x.safetensors", … } } }`.
 */

import { realpath } from "node:fs/promises";
import { dirname, join } from "node:path";
import { z } from "zod";
import { blobsOf } from "../hub/index.ts";
import { quote } from "../weights/index.ts";

const steps = z.int().min(1).max(1000);

const lightning = z.object({
  /** Step count that is used when none is asked for. */
  default: steps,
  /** Weights in the model folder itself by step count: a UNet with diffusers' names, or a LoRA. */
  files: z.record(
    z.string().regex(/^[1-9]\d{0,3}$/, "keys are step counts"),
    z.string().regex(/^\w[\w.-]*\.safetensors$/, "give the name of a .safetensors file in the model folder"),
  ),
});

const schema = z.object({
  /** Of the model's own UNet. */
  steps: steps.default(30),
  guidance: z.number().min(0).default(5),
  lightning: lightning.optional(),
});

/** What model_index.json says to fewstep; `steps` and `guidance` are those that the model was judged with. */
export type FolderDefaults = z.infer<typeof schema>;

/** @throws a sentence that names the field. */
export function folderDefaults(json: unknown): FolderDefaults {
  const { data, error } = schema.safeParse(json ?? {});
  if (error) {
    const { path, message } = error.issues[0];
    const given = path.reduce<unknown>((o, k) => (o as Record<PropertyKey, unknown> | null)?.[k], json);
    throw new Error(`${["fewstep", ...path].join(".")} is ${quote(given)}; ${message}`);
  }
  const { default: count, files } = data.lightning ?? {};
  if (files && !Object.hasOwn(files, String(count)))
    throw new Error(
      `fewstep.lightning.default is ${count}; files has ${Object.keys(files).join(", ") || "none"}`,
    );
  return data;
}

/**
 * Path of the few-step weights for a step count, or for the default one; undefined where there are none.
 * @throws when the file lies outside the folder.
 */
export async function lightningFile(
  folder: string,
  { lightning }: FolderDefaults,
  count = lightning?.default,
): Promise<{ path: string; steps: number } | undefined> {
  if (!lightning || count === undefined || !Object.hasOwn(lightning.files, String(count))) return undefined;
  const path = join(folder, lightning.files[String(count)]);
  const real = await realpath(path).catch((error: NodeJS.ErrnoException) => {
    throw error.code === "ENOENT" ? new Error(`${path}: no such file`, { cause: error }) : error;
  });
  const places = [folder, blobsOf(folder) ?? folder]; // files of a snapshot are links to its blobs
  if (!(await Promise.all(places.map((place) => realpath(place)))).includes(dirname(real)))
    throw new Error(`${path}: leads to ${real}, outside the model folder; put the file itself there`);
  return { path, steps: count };
}
