/** @file Models that are named by their repository instead of a path. */

import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { CachedRepo, hubCache, parseReference, type Reference } from "./cache.ts";

/**
 * Where a model or a weights file lies: a path stays what it is; `org/name`, `org/name@revision` and
 * `org/name/file` are looked up in the hub's cache. A path that exists always wins.
 * @throws one sentence when it is a repository's name and not in the cache.
 */
export function localPath(given: string): string {
  if (existsSync(given)) return given;
  const [, name, file = ""] = /^([^/\\]+\/[^/\\]+)(?:\/(.+))?$/.exec(given) ?? [];
  const reference = name === undefined || name.endsWith(".safetensors") ? undefined : referenceOf(name);
  if (!reference) return given;
  const repo = new CachedRepo(hubCache(), reference.repo);
  if (file && !existsSync(repo.folder)) return given; // more likely a path
  const commit = repo.commit(reference.revision);
  const path = commit && join(repo.snapshot(commit), file);
  if (path && existsSync(path)) return path;
  throw new Error(
    `${given}: no such file or folder, and the cache of the hub has none of that name; ` +
      `run: fewstep pull ${name}${file && ` ${file}`}`,
  );
}

function referenceOf(text: string): Reference | undefined {
  try {
    return parseReference(text);
  } catch {
    return undefined;
  }
}

/** `org/name` where a folder is a snapshot of it in a cache. */
export function repoOf(folder: string): string | undefined {
  const match = /[\\/]models--([^\\/]+)[\\/]snapshots[\\/][0-9a-f]{40}$/.exec(resolve(folder));
  return match?.[1].replace("--", "/");
}

/** The folder that files of a snapshot link to; undefined where there is none. */
export function blobsOf(folder: string): string | undefined {
  const blobs = join(dirname(dirname(resolve(folder))), "blobs");
  return repoOf(folder) && existsSync(blobs) ? blobs : undefined;
}
