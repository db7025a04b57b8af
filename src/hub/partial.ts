/**
 * @file A file on its way into the cache. What an interrupted run has left, `<etag>.incomplete`, is taken over under a
 * name of one's own, so that no two processes write to one file; on failure it gets that name back.
 */

import { createHash, type Hash } from "node:crypto";
import { createReadStream, existsSync, readdirSync, renameSync, statSync, writeFileSync } from "node:fs";
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { hasWriterEnded, makeFolder, writerMark } from "../platform/index.ts";
import { isWhole } from "./cache.ts";

/** Time without a change after which a file is held to be abandoned, ms: more than any wait for a server. */
const ABANDONED = 300_000;
/** Between two looks at a file that another process fetches, ms. */
const LOOK = 250;

/** What the finished file must be. */
interface Expected {
  size: number;
  /** SHA-256, or git's SHA-1 of a blob. */
  etag: string;
}

export class PartialFile implements AsyncDisposable {
  private hash: Hash;
  private written = 0;
  private readonly target: string;
  private readonly path: string;
  private readonly file: FileHandle;
  private readonly expected: Expected;

  private constructor(target: string, path: string, file: FileHandle, expected: Expected) {
    this.target = target;
    this.path = path;
    this.file = file;
    this.expected = expected;
    this.hash = newHash(expected);
  }

  /**
   * Begins a file, with what is already there of it.
   * @returns undefined when another process has just finished it; one that is at it is waited for.
   */
  static async claim(
    target: string,
    expected: Expected,
    signal?: AbortSignal,
  ): Promise<PartialFile | undefined> {
    makeFolder(dirname(target));
    for (let left = leftOf(target); left.busy; left = leftOf(target)) {
      await sleep(LOOK);
      signal?.throwIfAborted();
    }
    if (isWhole(target, expected)) return undefined;
    const path = `${target}.${writerMark()}.incomplete`;
    takeOver(leftOf(target).abandoned, path);
    const partial = new PartialFile(target, path, await open(path, "a"), expected);
    await partial.file.utimes(new Date(), new Date()); // it is in work again
    for await (const chunk of createReadStream(path)) partial.count(chunk as Uint8Array);
    if (partial.bytes > expected.size) await partial.restart();
    return partial;
  }

  get bytes(): number {
    return this.written;
  }

  async append(chunk: Uint8Array): Promise<void> {
    await this.file.appendFile(chunk).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code !== "ENOSPC") throw cause;
      throw new Error(
        `${this.target}: the disk is full; make room and run it again, and it goes on from there`,
        {
          cause,
        },
      );
    });
    this.count(chunk);
  }

  async restart(): Promise<void> {
    await this.file.truncate();
    this.hash = newHash(this.expected);
    this.written = 0;
  }

  /** Whether size and hash are what they must be. */
  isRight(): boolean {
    return this.written === this.expected.size && this.hash.copy().digest("hex") === this.expected.etag;
  }

  /** Gives the file its final name. */
  async place(): Promise<void> {
    await this.file.sync();
    await rename(this.path, this.target);
  }

  async discard(): Promise<void> {
    await rm(this.path, { force: true });
  }

  /** What is neither placed nor discarded is left for the next run. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.file.close();
    if (this.written === 0) await this.discard();
    if (existsSync(this.path)) await rename(this.path, `${this.target}.incomplete`);
  }

  private count(chunk: Uint8Array): void {
    this.hash.update(chunk);
    this.written += chunk.length;
  }
}

function newHash({ size, etag }: Expected): Hash {
  return etag.length === 64 ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

/** Without a pause, so that others of this process see who is at it. */
function takeOver(abandoned: string | undefined, path: string): void {
  try {
    if (abandoned) renameSync(abandoned, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error; // another process was faster
  }
  writeFileSync(path, "", { flag: "a" });
}

/** Of other runs: a beginning to go on from, its bytes, and whether somebody is at it. */
export function leftOf(target: string): { abandoned?: string; begun: number; busy: boolean } {
  const folder = dirname(target);
  if (!existsSync(folder)) return { begun: 0, busy: false };
  const start = `${basename(target)}.`;
  const left = readdirSync(folder).flatMap((name) => {
    const match = name.startsWith(start) && /^(?:(.+)\.)?incomplete$/.exec(name.slice(start.length));
    const stat = match ? statSync(join(folder, name), { throwIfNoEntry: false }) : undefined;
    if (!match || !stat) return [];
    const [, writer] = match;
    const isFresh = writer !== undefined && Date.now() - stat.mtimeMs < ABANDONED;
    const busy = isFresh && !hasWriterEnded(writer);
    return [{ path: join(folder, name), size: stat.size, busy }];
  });
  const [first] = left.filter(({ busy }) => !busy).sort((a, b) => b.size - a.size);
  return { abandoned: first?.path, begun: first?.size ?? 0, busy: left.some(({ busy }) => busy) };
}
