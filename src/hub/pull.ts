/** @file Fetches models from the Hugging Face hub into its cache. */

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { atomicWrite } from "../platform/index.ts";
import { CachedRepo, filesBelow, hubCache, isWhole, parseReference, type Reference } from "./cache.ts";
import { download } from "./download.ts";
import { proxiedFetch } from "./proxy.ts";
import { type RemoteFile, RemoteRepo } from "./remote.ts";
import { askForNames, selectModel, selectNamed } from "./select.ts";
import { endpointOf, isOffline, tokenOf } from "./settings.ts";

export interface PullOptions {
  /**
   * Names or globs of files; a glob without a slash is for files of every folder. Default: what runs a model folder in
   * diffusers layout, that is its configs, tokenizers and one set of weights for each component.
   */
  files?: readonly string[];
  /** Of a model folder's weights, such as "fp16". Default: the plain ones. */
  variant?: string;
  /** Default: `HF_ENDPOINT`, or https://huggingface.co. */
  endpoint?: string;
  /** Default: `HF_TOKEN`, or what logging in has left in the cache. */
  token?: string;
  /** Folder. Default: `HF_HUB_CACHE`, or ~/.cache/huggingface/hub. */
  cache?: string;
  /** Asks the cache alone. Default: `HF_HUB_OFFLINE`. */
  offline?: boolean;
  /** Files at once; default 4. */
  parallel?: number;
  /** Wait before a failed request is made again, doubled for each further time; default 1000 ms. */
  retryDelay?: number;
  /** Stops it; what has come of unfinished files is kept, and the next run goes on from there. */
  signal?: AbortSignal;
  /** Bytes that are there, of all that were chosen. */
  onProgress?: (done: number, total: number) => void;
}

export interface Pulled extends Reference {
  commit: string;
  /** The snapshot: the chosen files, and those fetched at other times. */
  folder: string;
  /** `downloaded`: now, and not before. */
  files: { path: string; size: number; downloaded: boolean }[];
}

/**
 * Fetches files of a repository that are not in the cache yet. They appear in the snapshot when all are there.
 * @param reference `org/name`, or `org/name@revision` with a branch, tag or commit
 * @throws one sentence: no such repository, revision or file, no access, no network, no room, a wrong hash.
 * @example const { folder } = await pull("stabilityai/sdxl-turbo", { variant: "fp16" });
 */
export async function pull(reference: string, options: PullOptions = {}): Promise<Pulled> {
  const { repo, revision } = parseReference(reference);
  const cached = new CachedRepo(options.cache ?? hubCache(), repo);
  if (options.variant !== undefined && options.files?.length)
    throw new Error(
      `the variant ${options.variant} chooses among the files of a model; name either it or files`,
    );
  return (options.offline ?? isOffline())
    ? pullOffline({ repo, revision }, cached, options)
    : pullOnline({ repo, revision }, cached, options);
}

async function pullOnline(reference: Reference, cached: CachedRepo, options: PullOptions): Promise<Pulled> {
  const { repo, revision } = reference;
  const { retryDelay = 1000, signal, parallel = 4, onProgress } = options;
  const [endpoint, token] = [endpointOf(options.endpoint), tokenOf(options.token)];
  const connection = { endpoint, token, fetch: await proxiedFetch(), retryDelay };
  const remote = new RemoteRepo(reference, connection);
  const commit = await remote.commit(signal);
  const listed = await remote.files(commit, signal);
  const fetched = new Set<string>();
  const job = { remote, cached, commit, parallel, signal, fetched };
  const readIndex = async (index: RemoteFile): Promise<string> => {
    await download([index], job);
    return readFile(cached.find(commit, index)!, "utf8");
  };
  const chosen = await choose(listed, { ...options, repo }, readIndex);
  await download(chosen, { ...job, onProgress });
  for (const { path, size, etag } of chosen)
    if (!isWhole(cached.file(commit, path), { size })) await cached.link(commit, path, etag);
  if (cached.commit(revision) !== commit) await atomicWrite(cached.ref(revision), commit);
  const files = chosen.map(({ path, size, etag }) => ({ path, size, downloaded: fetched.has(etag) }));
  return { repo, revision, commit, folder: cached.snapshot(commit), files };
}

async function pullOffline(reference: Reference, cached: CachedRepo, options: PullOptions): Promise<Pulled> {
  const { repo, revision } = reference;
  const commit = cached.commit(revision);
  const folder = commit && cached.snapshot(commit);
  if (!folder || !existsSync(folder))
    throw new Error(
      `${repo}@${revision} is not in the cache ${cached.folder}, and offline mode is on: fetch it online`,
    );
  const readIndex = (index: { path: string }) => readFile(join(folder, index.path), "utf8");
  const chosen = await choose(filesBelow(folder), { ...options, repo: `the cached ${repo}` }, readIndex);
  const files = chosen.map(({ path, size }) => ({ path, size, downloaded: false }));
  return { ...reference, commit, folder, files };
}

/** The files asked for, or those of a model folder. */
async function choose<T extends { path: string }>(
  files: readonly T[],
  { repo, variant, files: wanted = [] }: PullOptions & { repo: string },
  readIndex: (index: T) => Promise<string>,
): Promise<T[]> {
  if (wanted.length > 0) return selectNamed(files, wanted, repo);
  const index = files.find(({ path }) => path === "model_index.json");
  if (!index) throw askForNames(files, repo);
  return selectModel(files, await readIndex(index), { repo, variant });
}
