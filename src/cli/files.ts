/** @file Where pictures are saved. */

import { accessSync, constants, existsSync, statSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { makeFolder } from "../platform/index.ts";
import { failureOf, UsageError } from "./errors.ts";

/** Where pictures go: into a folder under made-up names, or to one named file. */
export interface Target {
  folder: string;
  /** Only when the user named a file. */
  file?: string;
}

/**
 * Checks and creates the folder, before anybody waits for a picture.
 * @param out a `.png` file, or a folder (existing, or ending in a slash); default the working directory
 */
export function outputTarget(out: string = "."): Target {
  const isFolder = /[\\/]$/.test(out) || isExistingFolder(out);
  if (!isFolder && extname(out).toLowerCase() !== ".png")
    throw new UsageError(
      `--out ${out}: fewstep writes PNG, so end the name in ".png", or in "/" to name a folder`,
    );
  const folder = isFolder ? out : dirname(out);
  writableFolder(folder, `--out ${out}`);
  return isFolder ? { folder } : { folder, file: out };
}

/** Makes a folder, before anybody waits for what goes there. @param what names it in the refusal */
export function writableFolder(folder: string, what: string): void {
  try {
    makeFolder(folder);
    accessSync(folder, constants.W_OK);
  } catch (error) {
    throw new UsageError(`${what}: cannot write there: ${failureOf(error).message}; name another folder`);
  }
}

/**
 * One path for each seed. A named file is taken as it is, and numbered when there are several pictures
 * (`apple-1.png`, `apple-2.png`); made-up names are prompt and seed, and never those of files that exist.
 */
export function picturePaths(
  { folder, file }: Target,
  prompt: string,
  seeds: readonly (number | bigint)[],
): string[] {
  if (file !== undefined) {
    const extension = extname(file);
    const stem = file.slice(0, -extension.length);
    return seeds.length === 1 ? [file] : seeds.map((_, i) => `${stem}-${i + 1}${extension}`);
  }
  const taken = new Set<string>();
  return seeds.map((seed) => {
    const stem = join(folder, `${slug(prompt)}-${seed}`);
    let path = `${stem}.png`;
    for (let n = 2; taken.has(path) || existsSync(path); n++) path = `${stem}-${n}.png`;
    taken.add(path);
    return path;
  });
}

/** `a-red-apple`: letters and digits of any script, at most 40. */
function slug(prompt: string): string {
  const words = prompt.toLowerCase().match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];
  return [...words.join("-")].slice(0, 40).join("").replace(/-$/, "") || "picture";
}

function isExistingFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}
