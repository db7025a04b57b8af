/** @file How the weights of files get into an ONNX Runtime session: in place where that can be, else as bytes. */

import { link, open, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { InferenceSession } from "onnxruntime-common";
import type { ExternalTensor } from "../onnx/index.ts";
import { atomicWrite, removeTemporaryFolder, temporaryFolder } from "../platform/index.ts";
import type { HostTensor } from "../tensor/index.ts";

/** A tensor at its place in a file. */
export interface FileTensor extends Omit<ExternalTensor, "location"> {
  path: string;
}

/**
 * Bytes up to which weights are handed over in memory. More are read in place, without the optimisations that look
 * into weights.
 */
const IN_MEMORY = 2 ** 28;
/** Bytes of one buffer, where many cannot be read in place. */
const WINDOW = 2 ** 30;
/** Bytes between two weights that are not worth a buffer of their own. */
const GAP = 2 ** 20;

interface Limits {
  inMemory: number;
  window: number;
}

type Placed = [name: string, tensor: FileTensor];

/**
 * Weights as a session can have them. ONNX Runtime reads files in place where all lie below the folder of the model, so
 * they are linked into one made for the session. (Below the working directory it would read them for a model of bytes
 * too, but some of its fusions of convolutions then fail for want of the model's path.)
 */
export class WeightFiles implements AsyncDisposable {
  readonly weights = new Map<string, HostTensor | ExternalTensor>();
  private readonly buffers: { path: string; data: Uint8Array }[] = [];
  /** Where links to files lie, and the model has to. */
  private folder?: string;

  private constructor() {}

  /** @param limits in bytes, for tests. */
  static async open(
    weights: ReadonlyMap<string, HostTensor | ExternalTensor | FileTensor>,
    { inMemory, window }: Limits = { inMemory: IN_MEMORY, window: WINDOW },
  ): Promise<WeightFiles> {
    const placed = new WeightFiles();
    const files = new Map<string, Placed[]>();
    let size = 0;
    for (const [name, t] of weights) {
      if ("data" in t || "location" in t) placed.weights.set(name, t);
      else {
        files.set(t.path, [...(files.get(t.path) ?? []), [name, t]]);
        size += t.bytes;
      }
    }
    const paths = [...files.keys()];
    const locations = size > inMemory ? await placed.link(paths) : undefined;
    for (const [path, tensors] of files) {
      const location = locations?.get(path);
      if (location === undefined) await placed.read(path, tensors, window);
      else for (const [name, t] of tensors) placed.weights.set(name, { ...t, location });
    }
    return placed;
  }

  /** The model as a session takes it. */
  async model(bytes: Uint8Array): Promise<Uint8Array | string> {
    if (!this.folder) return bytes;
    const path = join(this.folder, "model.onnx");
    await atomicWrite(path, bytes);
    return path;
  }

  /** Options of the session. */
  get options(): InferenceSession.SessionOptions {
    return this.buffers.length > 0 ? { externalData: this.buffers } : {};
  }

  /** Links all files into a new folder; undefined where some are on another disk, or of another user. */
  private async link(paths: readonly string[]): Promise<ReadonlyMap<string, string> | undefined> {
    const real = await Promise.all(paths.map((path) => realpath(path)));
    for (const parent of new Set([tmpdir(), ...real.map(dirname)])) {
      const folder = await temporaryFolder(join(parent, "fewstep-")).catch(() => undefined);
      if (folder === undefined) continue;
      this.folder = folder;
      const names = real.map((_, i) => `weights-${i}`);
      try {
        for (const [i, path] of real.entries()) await link(path, join(folder, names[i]));
        return new Map(paths.map((path, i) => [path, names[i]]));
      } catch {
        await this[Symbol.asyncDispose]();
        this.folder = undefined;
      }
    }
    return undefined;
  }

  /** Reads the bytes that are needed, in windows. */
  private async read(path: string, tensors: readonly Placed[], window: number): Promise<void> {
    await using file = await open(path, "r");
    const sorted = [...tensors].sort(([, a], [, b]) => a.offset - b.offset);
    for (let i = 0; i < sorted.length; ) {
      const start = Math.floor(sorted[i][1].offset / 64) * 64; // stays aligned
      const location = `bytes-${this.buffers.length}`;
      let end = start;
      for (; i < sorted.length; i++) {
        const [name, t] = sorted[i];
        const next = Math.max(end, t.offset + t.bytes);
        if (end > start && (next - start > window || t.offset - end > GAP)) break;
        this.weights.set(name, { ...t, location, offset: t.offset - start });
        end = next;
      }
      const data = new Uint8Array(end - start);
      for (let done = 0; done < data.length; ) {
        const { bytesRead } = await file.read(
          data,
          done,
          Math.min(data.length - done, 2 ** 30),
          start + done,
        );
        if (bytesRead === 0) throw new Error(`${path}: the file ended while it was read`);
        done += bytesRead;
      }
      this.buffers.push({ path: location, data });
    }
  }

  /** Removes the links; sessions keep what they have opened. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.folder) await removeTemporaryFolder(this.folder);
  }
}
