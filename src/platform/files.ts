/** @file Files appear whole or not at all. */

import { createHash } from "node:crypto";
import { createReadStream, existsSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { mkdtemp, open, rename, rm } from "node:fs/promises";
import { homedir, hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import process from "node:process";
import { pipeline } from "node:stream/promises";
import { threadId } from "node:worker_threads";

/** Of this machine: processes of several, such as containers, may share a folder and have the same number. */
export const HOST: string = createHash("sha256").update(hostname()).digest("hex").slice(0, 8);
/** Temporary files being written, and folders. */
const unfinished = new Set<string>();
let count = 0;

/** Bytes, or text as UTF-8; or what is made only when it is written, perhaps in pieces. */
type Part = Uint8Array | string | (() => Uint8Array | AsyncIterable<Uint8Array>);

/** Writes parts to a file that appears whole or not at all; creates the folder. */
export async function atomicWrite(path: string, ...parts: readonly Part[]): Promise<void> {
  await atomically(path, async (temporary) => {
    await using file = await open(temporary, "w");
    for (const part of parts) {
      const made = typeof part === "function" ? part() : part;
      if (typeof made === "string" || made instanceof Uint8Array) await file.writeFile(made);
      else for await (const piece of made) await file.writeFile(piece);
    }
    await file.sync();
  });
}

/**
 * Lets `make` make a file or folder under a temporary name beside `path` and renames it; creates the folder above. On
 * any failure nothing is left.
 */
export async function atomically(path: string, make: (temporary: string) => Promise<void>): Promise<void> {
  await withTemporary(path, async (temporary) => {
    await make(temporary);
    await rename(temporary, path);
  });
}

/** Lets `use` have a temporary name beside `path`; what is there afterwards is removed. Creates the folder above. */
export async function withTemporary<T>(path: string, use: (temporary: string) => Promise<T>): Promise<T> {
  makeFolder(dirname(path));
  const temporary = `${path}.${writerMark()}.tmp`;
  unfinished.add(temporary);
  try {
    return await use(temporary);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOSPC")
      throw new Error(`${path}: the disk is full; nothing was written`, { cause: error });
    throw error;
  } finally {
    rmSync(temporary, { force: true, recursive: true });
    unfinished.delete(temporary);
  }
}

/** Makes a folder that `removeTemporaryFolder` removes, or the end of the process by a signal. */
export async function temporaryFolder(prefix: string): Promise<string> {
  const folder = await mkdtemp(prefix);
  unfinished.add(folder);
  return folder;
}

/** Windows refuses while files in it are open, which is no harm. */
export async function removeTemporaryFolder(folder: string): Promise<void> {
  await rm(folder, { recursive: true, force: true }).catch(() => {});
  unfinished.delete(folder);
}

/** SHA-256 of a file's content from byte `start` on, in hexadecimal. */
export async function fileHash(path: string, start = 0): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { start, highWaterMark: 1 << 20 }), hash);
  return hash.digest("hex");
}

/** Where what was fetched or computed is kept: `FEWSTEP_CACHE`, by default fewstep in the user's cache folder. */
export function cacheFolder(): string {
  const { FEWSTEP_CACHE, XDG_CACHE_HOME } = process.env;
  return FEWSTEP_CACHE || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "fewstep");
}

/** Makes a folder and those above it. Node's `recursive` runs for ever where the system makes none, as in /proc. */
export function makeFolder(path: string): void {
  try {
    mkdirSync(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const parent = dirname(path);
    if (code === "ENOENT" && !existsSync(parent)) {
      makeFolder(parent);
      makeFolder(path);
    } else if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw error;
  }
}

/** For the name of a file that is being written: no other thread, process or machine has the same. */
export function writerMark(): string {
  return `${HOST}-${process.pid}-${threadId}-${count++}`;
}

/** Whether the process of a mark has ended; of those elsewhere it is not known. */
export function hasWriterEnded(mark: string): boolean {
  const [, host, pid] = /^([\da-f]{8})-(\d+)-\d+-\d+$/.exec(mark) ?? [];
  return host === HOST && !isAlive(Number(pid));
}

/** Removes temporary files that processes of this machine left beside `path` when they were killed. */
export function removeAbandoned(path: string): void {
  for (const name of readdirSync(dirname(path))) {
    const [, stem, mark] = /^(.+)\.([^.]+)\.tmp$/.exec(name) ?? [];
    if (stem === basename(path) && hasWriterEnded(mark)) rmSync(join(dirname(path), name), { force: true });
  }
}

/** Whether a process of this machine runs. */
function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // another user's
  }
}

/** For a process that is about to end: removes what was not written whole. */
export function removeUnfinished(): void {
  for (const path of unfinished) rmSync(path, { force: true, recursive: true });
}
