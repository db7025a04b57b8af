/**
 * @file The cache that Python's huggingface_hub shares with other programs:
 *
 *     models--org--name/blobs/<etag>                 contents; the etag is their hash
 *     models--org--name/refs/<branch or tag>         commit
 *     models--org--name/snapshots/<commit>/<path>    relative link to a blob, or a copy of it
 */

import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { copyFile, symlink } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import process from "node:process";
import { atomically } from "../platform/index.ts";

export const COMMIT = /^[0-9a-f]{40}$/;

/** A repository at a branch, tag or commit. */
export interface Reference {
  /** `org/name`. */
  repo: string;
  revision: string;
}

/** @throws when `text` is not `org/name` or `org/name@revision`. */
export function parseReference(text: string): Reference {
  const [, repo = "", revision = "main"] = /^([^@]*)(?:@(.*))?$/s.exec(text) ?? [];
  const isName = repo.length <= 96 && /^\w[\w.-]*(?:\/\w[\w.-]*)?$/.test(repo) && !/--|\.\.|\.$/.test(repo);
  if (!isName || !/^[\w+-][\w+./-]*$/.test(revision) || /\.\.|\/$|\/\//.test(revision))
    throw new Error(
      `"${text}" names no repository of the hub; give "org/name", or "org/name@revision" with a branch, tag or commit`,
    );
  return { repo, revision };
}

/** Where files of the hub and its token lie: `HF_HOME`, by default ~/.cache/huggingface. */
export function hubHome(): string {
  const { HF_HOME, XDG_CACHE_HOME } = process.env;
  return expand(HF_HOME || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "huggingface"));
}

/** `HF_HUB_CACHE`, by default the folder "hub" in `hubHome`. */
export function hubCache(): string {
  const { HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE } = process.env;
  return expand(HF_HUB_CACHE || HUGGINGFACE_HUB_CACHE || join(hubHome(), "hub"));
}

function expand(path: string): string {
  return path.replace(/^~(?=$|[\\/])/, homedir());
}

/** One repository in a cache. */
export class CachedRepo {
  readonly folder: string;

  constructor(cache: string, repo: string) {
    this.folder = join(resolve(cache), `models--${repo.replace("/", "--")}`);
  }

  /** Undefined for a branch or tag that was never fetched whole. */
  commit(revision: string): string | undefined {
    if (COMMIT.test(revision)) return revision;
    const ref = this.ref(revision);
    const commit = statSync(ref, { throwIfNoEntry: false })?.isFile() ? readFileSync(ref, "utf8").trim() : "";
    return COMMIT.test(commit) ? commit : undefined;
  }

  ref(revision: string): string {
    return join(this.folder, "refs", revision);
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }

  file(commit: string, path: string): string {
    return join(this.snapshot(commit), path);
  }

  blob(etag: string): string {
    return join(this.folder, "blobs", etag);
  }

  /** Where a content lies, in the snapshot or not yet; undefined when it was not fetched whole. */
  find(
    commit: string,
    { path, etag, size }: { path: string; etag: string; size: number },
  ): string | undefined {
    return [this.file(commit, path), this.blob(etag)].find((place) => isWhole(place, { size }));
  }

  /** Puts a blob under its name in a snapshot; as a copy where the file system has no links. */
  async link(commit: string, path: string, etag: string): Promise<void> {
    const blob = this.blob(etag);
    const name = this.file(commit, path);
    await atomically(name, (temporary) =>
      symlink(relative(dirname(name), blob), temporary).catch(() => copyFile(blob, temporary)),
    );
  }
}

/** Whether a file has its size; its hash was checked before it got its name. */
export function isWhole(path: string, { size }: { size: number }): boolean {
  return statSync(path, { throwIfNoEntry: false })?.size === size;
}

/** Paths of the files below a folder, with slashes; links that lead nowhere are left out. */
export function filesBelow(folder: string): { path: string; size: number }[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: "utf8" }).flatMap((name) => {
    const stat = statSync(join(folder, name), { throwIfNoEntry: false });
    return stat?.isFile() ? [{ path: name.replaceAll("\\", "/"), size: stat.size }] : [];
  });
}
