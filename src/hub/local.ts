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
  const named = namesIn(given).flatMap(([name, file]) => {
    const reference = name.endsWith(".safetensors") ? undefined : referenceOf(name);
    return reference ? { name, file, ...reference } : [];
  });
  if (named.length === 0) return given;
  const repo = new CachedRepo(hubCache(), named[0].repo);
  for (const { revision, file } of named) {
    const commit = repo.commit(revision);
    const path = commit && join(repo.snapshot(commit), file);
    if (path && existsSync(path)) return path;
  }
  const [{ name, file }] = named;
  if (file && !existsSync(repo.folder)) return given; // more likely a path
  throw new Error(
    `${given}: no such file or folder, and the cache of the hub has none of that name; ` +
      `run: fewstep pull ${name}${file && ` ${file}`}`,
  );
}

/** A repository's name and a file in it, as a text may mean them: revisions have slashes too. The likeliest first. */
function namesIn(given: string): [name: string, file: string][] {
  const [, name, rest] = /^([^/\\]+\/[^/\\]+)(?:\/(.+))?$/.exec(given) ?? [];
  if (name === undefined) return [];
  const parts = rest?.split("/") ?? [];
  const splits = name.includes("@") ? Array.from({ length: parts.length + 1 }, (_, i) => i) : [0];
  const usual = name.endsWith("@refs") ? 2 : 0; // refs/pr/1
  return splits
    .sort((a, b) => Number(b === usual) - Number(a === usual))
    .map((at) => [[name, ...parts.slice(0, at)].join("/"), parts.slice(at).join("/")]);
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
