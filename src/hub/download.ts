/** @file Brings files into the cache, some at once. */

import { statfs } from "node:fs/promises";
import { makeFolder } from "../platform/index.ts";
import type { CachedRepo } from "./cache.ts";
import { leftOf } from "./partial.ts";
import type { RemoteFile, RemoteRepo } from "./remote.ts";
import { transfer } from "./transfer.ts";

interface Job {
  remote: RemoteRepo;
  cached: CachedRepo;
  commit: string;
  /** Files at once. */
  parallel: number;
  signal?: AbortSignal;
  /** Gets the etags of what the cache lacked. */
  fetched: Set<string>;
  /** Bytes that are there, of all. */
  onProgress?: (done: number, total: number) => void;
}

/** Fetches what the cache lacks. @throws one sentence; other files that were on their way are left for the next run. */
export async function download(files: readonly RemoteFile[], job: Job): Promise<void> {
  const { cached, commit, parallel, signal, fetched, onProgress } = job;
  const contents = [...new Map(files.map((file) => [file.etag, file])).values()]; // some files are the same
  const missing = contents.filter((file) => cached.find(commit, file) === undefined);
  const total = bytesOf(contents);
  let done = total - bytesOf(missing);
  const onBytes = (count: number): void => {
    done += count;
    onProgress?.(done, total);
  };
  onBytes(0);
  const begun = missing.reduce((sum, { etag }) => sum + leftOf(cached.blob(etag)).begun, 0);
  if (missing.length > 0) await checkRoom(cached.folder, bytesOf(missing) - begun);
  await inParallel(missing, parallel, signal, async (file, stop) => {
    const target = cached.blob(file.etag);
    if (await transfer(file, { ...job, target, onBytes, signal: stop })) fetched.add(file.etag);
  });
}

/** @throws before anything is fetched that the disk cannot hold. */
async function checkRoom(folder: string, bytes: number): Promise<void> {
  makeFolder(folder);
  const { bavail, bsize } = await statfs(folder);
  if (bytes > bavail * bsize)
    throw new Error(
      `${gigabytes(bytes)} are to be fetched, and ${gigabytes(bavail * bsize)} are free in ${folder}; ` +
        "make room, or name a folder elsewhere in HF_HUB_CACHE",
    );
}

/**
 * Runs `work` on all items, some at once. The first failure stops the others, which end in order, and is thrown.
 * @param work its `stop` is aborted then, or by `signal`
 */
async function inParallel<T>(
  items: readonly T[],
  count: number,
  signal: AbortSignal | undefined,
  work: (item: T, stop: AbortSignal) => Promise<void>,
): Promise<void> {
  const failed = new AbortController();
  const stop = AbortSignal.any([failed.signal, ...(signal ? [signal] : [])]);
  const queue = items.values();
  const worker = async (): Promise<void> => {
    for (const item of queue) {
      if (stop.aborted) return;
      await work(item, stop).catch((error) => failed.abort(error));
    }
  };
  await Promise.all(Array.from({ length: count }, worker));
  stop.throwIfAborted();
}

function bytesOf(files: readonly { size: number }[]): number {
  return files.reduce((sum, { size }) => sum + size, 0);
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(1)} GB`;
}
