/** @file Files as other programs have them; record_single.py loads them in diffusers. */

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { convertModel } from "../../src/pipelines/index.ts";
import { writeSmall } from "../pipelines/small.ts";
import { checkpointKeys } from "../weights/sdxl.ts";

/** small.safetensors, small as a folder, and keys.json: those of the full SDXL. */
export async function writeSingle(folder: string): Promise<void> {
  await writeFile(join(folder, "keys.json"), JSON.stringify(checkpointKeys()));
  await writeSmall(join(folder, "small.safetensors"));
  await convertModel(join(folder, "small.safetensors"), join(folder, "small"));
}
