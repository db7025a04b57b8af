/** @file Which files a number came from. */

import { createHash } from "node:crypto";
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../pipelines/index.ts";
import { fileHash } from "../platform/index.ts";

/** Folders of a model that decide its pictures. */
const PARTS = ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"];

/**
 * SHA-256 of what decides a model's pictures: of a checkpoint, or of all files in the component folders and of
 * model_index.json without the entry for fewstep, which lists few-step weights beside them.
 * @param parts component folders that count.
 */
export async function modelHash(model: string, parts: readonly string[] = PARTS): Promise<string> {
  if (statSync(model).isFile()) return fileHash(model);
  const hash = createHash("sha256");
  const file = join(model, "model_index.json"); // a judge has none
  const { fewstep: _, ...index } = existsSync(file) ? await readJson(file) : {};
  hash.update(JSON.stringify(index));
  for (const part of parts.filter((name) => existsSync(join(model, name))))
    for (const name of readdirSync(join(model, part)).sort()) {
      const path = join(model, part, name);
      if (!statSync(path).isFile() || name.endsWith(".tmp")) continue;
      hash.update(`\0${part}/${name}\0${await fileHash(path)}`);
    }
  return hash.digest("hex");
}
