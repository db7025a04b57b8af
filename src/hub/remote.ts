/** @file A repository at the hub: its commit, its list of files, and their bytes. */

import { z } from "zod";
import { COMMIT, type Reference } from "./cache.ts";
import { type Connection, pause, request } from "./request.ts";

/** A connection that is silent for so long counts as cut, ms. */
const STALL = 60_000;

export interface RemoteFile {
  /** In the repository, with slashes. */
  path: string;
  /** Bytes. */
  size: number;
  /** Hash of the content: SHA-256 of large files, git's SHA-1 of others. */
  etag: string;
}

const count = z.int().nonnegative();
const listed = z.object({
  path: z.string(),
  size: count,
  oid: z.string().regex(COMMIT),
  lfs: z.object({ oid: z.string().regex(/^[0-9a-f]{64}$/), size: count }).optional(),
});

export class RemoteRepo {
  private readonly reference: Reference;
  private readonly connection: Connection;

  constructor(reference: Reference, connection: Connection) {
    this.reference = reference;
    this.connection = connection;
  }

  /** The commit that the revision stands for. */
  async commit(signal?: AbortSignal): Promise<string> {
    const { modelInfo } = await import("@huggingface/hub");
    const { repo: name, revision } = this.reference;
    return this.ask(signal, async (hub) => {
      const { sha } = await modelInfo({ ...hub, name, revision, additionalFields: ["sha"] });
      if (!COMMIT.test(sha)) throw new SyntaxError("no commit");
      return sha;
    });
  }

  /** All files at a commit. @throws when one would lie outside its folder. */
  async files(commit: string, signal?: AbortSignal): Promise<RemoteFile[]> {
    const { listFiles } = await import("@huggingface/hub");
    const { repo } = this.reference;
    return this.ask(signal, async (hub) => {
      const files: RemoteFile[] = [];
      for await (const entry of listFiles({ ...hub, repo, revision: commit, recursive: true })) {
        if (entry.type !== "file") continue;
        const { path, size, oid, lfs } = listed.parse(entry);
        if (!staysInside(path))
          throw new Error(
            `${repo} lists a file ${JSON.stringify(path)} outside of its folder; nothing of it was fetched`,
          );
        files.push({ path, size: lfs?.size ?? size, etag: lfs?.oid ?? oid });
      }
      return files;
    });
  }

  /**
   * The bytes of a file from `offset` on, or from 0 where the server cannot do that. A cut connection ends them
   * early: who reads must count.
   */
  async open(
    file: RemoteFile,
    commit: string,
    offset: number,
    signal?: AbortSignal,
  ): Promise<{ start: number; chunks: AsyncIterable<Uint8Array> }> {
    const { endpoint } = this.connection;
    const { path, size } = file;
    const name = path.split("/").map(encodeURIComponent).join("/");
    const url = `${endpoint}/${this.reference.repo}/resolve/${commit}/${name}`;
    const headers: Record<string, string> = { "accept-encoding": "identity" };
    if (offset > 0) headers.range = `bytes=${offset}-`;
    const response = await request(url, this.connection, { ...this.asked(), path }, { headers, signal });
    const isPart = response.status === 206;
    const [, from, all] = /^bytes (\d+)-\d+\/(\d+)$/.exec(response.headers.get("content-range") ?? "") ?? [];
    const start = isPart ? Number(from) : 0;
    const length = (isPart ? all : response.headers.get("content-length")) ?? String(size);
    if (response.status !== 416 && [0, offset].includes(start) && length === String(size))
      return { start, chunks: chunksOf(response, signal) };
    await response.body?.cancel();
    if (offset > 0) return this.open(file, commit, 0, signal); // the part we have is of something else
    throw new Error(
      `${path} of ${this.reference.repo} has ${length} bytes at ${endpoint}, which lists it with ${size}`,
    );
  }

  /** Waits before a further try to read a file. */
  pause(tries: number, signal?: AbortSignal): Promise<void> {
    return pause(this.connection.retryDelay * 2 ** tries, signal);
  }

  private asked() {
    const { endpoint, token } = this.connection;
    return { ...this.reference, endpoint, hasToken: token !== undefined };
  }

  /** Runs a function of the library, whose requests are ours. @throws one sentence when the answer is no hub's. */
  private async ask<T>(
    signal: AbortSignal | undefined,
    run: (hub: { hubUrl: string; fetch: typeof fetch }) => Promise<T>,
  ): Promise<T> {
    const { endpoint: hubUrl } = this.connection;
    const whole = async (response: Response) => new Response(await response.text(), response);
    const viaRequest: typeof fetch = (input) =>
      request(String(input), this.connection, this.asked(), { read: whole, signal });
    try {
      return await run({ hubUrl, fetch: viaRequest });
    } catch (error) {
      if (!(error instanceof SyntaxError || error instanceof TypeError || error instanceof z.ZodError))
        throw error;
      throw new Error(`${hubUrl} does not answer as a Hugging Face hub does; check HF_ENDPOINT`, {
        cause: error,
      });
    }
  }
}

/** Whether a name stays below its folder on every system, whoever wrote the list. */
function staysInside(path: string): boolean {
  const parts = path.split("/");
  return !/[\\\p{Cc}]|^[a-z]:/iu.test(path) && !parts.some((part) => ["", ".", ".."].includes(part));
}

async function* chunksOf({ body }: Response, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  if (!body) return;
  const reader = body.getReader();
  const silence = setTimeout(() => void reader.cancel().catch(() => {}), STALL);
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true, value: undefined }));
      signal?.throwIfAborted();
      if (done || !value) return;
      silence.refresh();
      yield value;
    }
  } finally {
    clearTimeout(silence);
    await reader.cancel().catch(() => {}); // already cut
  }
}
