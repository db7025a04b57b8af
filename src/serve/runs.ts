/**
 * @file Training runs, to look at while they go on: folders with a log.jsonl somewhere under one that the server was
 * given. They are named by where they lie, and a name is looked up among those found: none becomes a path unchecked.
 */

import type { Dirent } from "node:fs";
import { type FileHandle, open, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { quote } from "../weights/index.ts";
import { Refusal } from "./refusal.ts";

export interface RunSummary {
  /** Folders from the given one on, joined by "/". */
  name: string;
  /** Milliseconds since 1970 of the last row. */
  updatedAt: number;
  /** That it will have, where its recipe says so. */
  steps?: number;
  /** Steps of its sample grids, ascending. */
  samples: number[];
}

export interface LogPart {
  /** A number for each name; "step" among them. */
  rows: Record<string, number>[];
  /** Where they begin: 0 when the log was written anew meanwhile. */
  from: number;
  /** Where the next part begins, in bytes. */
  next: number;
  /** Whether there is more. */
  more: boolean;
}

/** Folders below the given one that are looked into: distillations have stages with phases. */
const DEPTH = 4;
/** Runs that are listed. */
const MOST = 500;
/** Bytes of a log that are read at a time. */
const PART = 256 * 1024;
const LOG = "log.jsonl";
const SAMPLES = /^samples-(\d{1,12})\.png$/;

const row = z.record(z.string(), z.number()).refine((row) => Number.isSafeInteger(row.step));
const recipe = z.object({ steps: z.int().positive() });

export class Runs {
  private readonly root: string;

  private constructor(root: string) {
    this.root = root;
  }

  /** @throws one sentence when there is no such folder. */
  static async open(root: string): Promise<Runs> {
    const found = await stat(root).catch(() => undefined);
    if (!found?.isDirectory()) throw new Error(`${root}: no such folder; give the one that holds the runs`);
    return new Runs(root);
  }

  /** The last that was written to first. */
  async list(): Promise<RunSummary[]> {
    const runs = await Promise.all((await this.names()).map((name) => this.summary(name)));
    return runs.flatMap((run) => run ?? []).sort((a, b) => b.updatedAt - a.updatedAt);
  }

  /** Rows of a log from a byte on, whole lines of at most 256 KiB. @throws Refusal when there is no such run. */
  async log(name: string, from: number): Promise<LogPart> {
    const file = await open(join(await this.folder(name), LOG));
    try {
      const { size } = await file.stat();
      const start = (await isLineStart(file, from, size)) ? from : 0;
      const bytes = Buffer.alloc(Math.min(PART, size - start));
      const { bytesRead } = await file.read(bytes, 0, bytes.length, start);
      const end = bytes.lastIndexOf("\n", bytesRead - 1) + 1; // the last line may not be whole yet
      const lines = bytes.toString("utf8", 0, end).split("\n");
      const next = start + end;
      return { rows: lines.flatMap(parseRow), from: start, next, more: end > 0 && next < size };
    } finally {
      await file.close();
    }
  }

  /** A sample grid, as PNG. @throws Refusal when there is none. */
  async samples(name: string, step: number): Promise<Buffer> {
    const folder = await this.folder(name);
    const file = (await readdir(folder, { withFileTypes: true })).find((entry) => sampleStep(entry) === step);
    if (!file) throw new Refusal("not_found", `the run ${quote(name)} has no samples of step ${step}`);
    return readFile(join(folder, file.name));
  }

  private async folder(name: string): Promise<string> {
    if ((await this.names()).includes(name)) return join(this.root, ...name.split("/"));
    throw new Refusal("not_found", `there is no run ${quote(name)}`);
  }

  /** Links are not followed. */
  private async names(): Promise<string[]> {
    const found: string[] = [];
    const walk = async (parts: readonly string[]): Promise<void> => {
      const entries = await readdir(join(this.root, ...parts), { withFileTypes: true }).catch(() => []);
      if (parts.length > 0 && entries.some((entry) => entry.isFile() && entry.name === LOG))
        found.push(parts.join("/"));
      if (parts.length === DEPTH) return;
      for (const entry of entries)
        if (entry.isDirectory() && found.length < MOST) await walk([...parts, entry.name]);
    };
    await walk([]);
    return found;
  }

  private async summary(name: string): Promise<RunSummary | undefined> {
    const folder = join(this.root, ...name.split("/"));
    try {
      const { mtimeMs: updatedAt } = await stat(join(folder, LOG));
      const samples = (await readdir(folder, { withFileTypes: true })).flatMap((e) => sampleStep(e) ?? []);
      const steps = recipe.safeParse(await readJson(join(folder, "recipe.json"))).data?.steps;
      return { name, updatedAt, steps, samples: samples.sort((a, b) => a - b) };
    } catch {
      return undefined; // it was removed meanwhile
    }
  }
}

/** Whether a line of the log begins there, as one does where a part ended unless the log was written anew. */
async function isLineStart(file: FileHandle, at: number, size: number): Promise<boolean> {
  if (at === 0 || at > size) return at === 0;
  const { buffer } = await file.read(Buffer.alloc(1), 0, 1, at - 1);
  return buffer.toString() === "\n";
}

function parseRow(line: string): Record<string, number>[] {
  try {
    return [row.parse(JSON.parse(line))];
  } catch {
    return [];
  }
}

function sampleStep(entry: Dirent): number | undefined {
  const [, step] = (entry.isFile() && SAMPLES.exec(entry.name)) || [];
  return step === undefined ? undefined : Number(step);
}

async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, "utf8"));
  } catch {
    return undefined;
  }
}
