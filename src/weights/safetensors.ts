/**
 * @file The safetensors format: an 8-byte little-endian header length, a JSON header, the data. Files come from
 * strangers, so every number in a header is checked before it is used.
 */

import { type FileHandle, open } from "node:fs/promises";
import { basename } from "node:path";
import { atomicWrite } from "../platform/index.ts";
import { DTYPES, type DType, type HostTensor, sizeOf } from "../tensor/index.ts";
import { foreignFormat } from "./foreign.ts";

const NAMES: Record<string, DType> = {
  F64: "float64",
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  F8_E4M3: "float8_e4m3fn",
  F8_E5M2: "float8_e5m2",
  I64: "int64",
  I32: "int32",
  I8: "int8",
  U8: "uint8",
  BOOL: "bool",
};
const CODES = Object.fromEntries(Object.entries(NAMES).map(([code, dtype]) => [dtype, code]));
const MAX_HEADER = 100_000_000; // as the reference implementation

/** Bytes read at once where a tensor is copied from file to file. */
const PIECE = 2 ** 24;

export interface TensorEntry {
  /** Of the file it lies in. */
  path: string;
  dtype: DType;
  shape: readonly number[];
  /** Position in the file, in bytes. */
  offset: number;
  bytes: number;
}

/** An open file: the header is read, the data is read on demand. Close it with `close` or `await using`. */
export class SafetensorsFile implements AsyncDisposable {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  private readonly handle: FileHandle;

  private constructor(
    path: string,
    metadata: Record<string, string>,
    entries: Map<string, TensorEntry>,
    handle: FileHandle,
  ) {
    this.path = path;
    this.metadata = metadata;
    this.entries = entries;
    this.handle = handle;
  }

  /** @throws one sentence with the file's name when it is not a valid safetensors file. */
  static async open(path: string): Promise<SafetensorsFile> {
    const handle = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
      throw error.code === "ENOENT" ? new Error(`${path}: no such file`, { cause: error }) : error;
    });
    try {
      const stat = await handle.stat();
      if (!stat.isFile()) throw new Error(`${path}: not a file`);
      const { size } = stat;
      const length = await readHeaderLength(handle, size, path);
      const text = await readBytes(handle, 8, length);
      const { metadata, entries } = parseHeader(text, size - 8 - length, 8 + length, path);
      return new SafetensorsFile(path, metadata, entries, handle);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  async read(name: string): Promise<HostTensor> {
    const entry = this.entries.get(name);
    if (!entry) throw new Error(`${basename(this.path)}: no tensor is called ${name}`);
    return this.load(entry);
  }

  /** The tensor at a place, in the shape given there. */
  async load(entry: TensorEntry): Promise<HostTensor> {
    const { buffer } = await readBytes(this.handle, entry.offset, entry.bytes);
    return {
      dtype: entry.dtype,
      shape: entry.shape,
      data: new DTYPES[entry.dtype].array(buffer, 0, sizeOf(entry.shape)),
    };
  }

  /** Bytes as they lie in the file. */
  async bytes(offset: number, length: number): Promise<Uint8Array> {
    return readBytes(this.handle, offset, length);
  }

  async close(): Promise<void> {
    await this.handle.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

async function readBytes(handle: FileHandle, position: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await handle.read(bytes, done, Math.min(length - done, 1 << 30), position + done);
    if (bytesRead === 0) throw new Error("the file ended while it was read");
    done += bytesRead;
  }
  return bytes;
}

async function readHeaderLength(handle: FileHandle, size: number, path: string): Promise<number> {
  const name = basename(path);
  if (size < 8)
    throw new Error(`${name}: not a safetensors file: ${size} bytes, the header alone needs more`);
  const head = await readBytes(handle, 0, 8);
  const length = new DataView(head.buffer).getBigUint64(0, true);
  const foreign = foreignFormat(head);
  if (foreign) throw new Error(`${name}: not a safetensors file: ${foreign}`);
  if (length > BigInt(MAX_HEADER))
    throw new Error(
      `${name}: not a safetensors file: its header claims ${length} bytes, at most ${MAX_HEADER} are allowed`,
    );
  if (Number(length) > size - 8)
    throw new Error(
      `${name}: truncated: the header needs ${length} bytes, the file has ${size - 8}; fetch it again`,
    );
  return Number(length);
}

/** @param room bytes after the header; @param start their position in the file. */
function parseHeader(
  text: Uint8Array,
  room: number,
  start: number,
  path: string,
): { metadata: Record<string, string>; entries: Map<string, TensorEntry> } {
  const name = basename(path);
  let json: string;
  let header: unknown;
  try {
    json = new TextDecoder("utf-8", { fatal: true }).decode(text);
    header = JSON.parse(json);
  } catch {
    throw new Error(`${name}: not a safetensors file: the header is not JSON`);
  }
  if (!isObject(header)) throw new Error(`${name}: the safetensors header is not an object`);
  const twice = duplicateKey(json);
  if (twice !== undefined) throw new Error(`${name}: the safetensors header has ${label(twice)} twice`);
  const metadata: Record<string, string> = {};
  const entries = new Map<string, TensorEntry>();
  for (const [key, value] of Object.entries(header)) {
    if (key !== "__metadata__") {
      entries.set(key, { path, ...parseEntry(key, value, room, start, name) });
      continue;
    }
    if (!isObject(value)) throw new Error(`${name}: __metadata__ is not an object of strings`);
    for (const [k, v] of Object.entries(value)) {
      if (typeof v !== "string") throw new Error(`${name}: metadata ${label(k)} is not a string`);
      if (k !== "__proto__") metadata[k] = v;
    }
  }
  let end = start;
  for (const [key, e] of [...entries].sort(([, a], [, b]) => a.offset - b.offset || a.bytes - b.bytes)) {
    if (e.offset !== end)
      throw new Error(
        `${name}: tensor ${label(key)} ${e.offset < end ? "overlaps another" : "leaves a gap before it"}`,
      );
    end += e.bytes;
  }
  if (end !== start + room)
    throw new Error(`${name}: ${start + room - end} bytes after the last tensor; the file is damaged`);
  return { metadata, entries };
}

function parseEntry(
  key: string,
  value: unknown,
  room: number,
  start: number,
  name: string,
): Omit<TensorEntry, "path"> {
  const tensor = `${name}: tensor ${label(key)}`;
  if (!isObject(value)) throw new Error(`${tensor} has no dtype, shape and data_offsets`);
  const { dtype, shape, data_offsets } = value;
  if (typeof dtype !== "string" || !Object.hasOwn(NAMES, dtype))
    throw new Error(`${tensor} has dtype ${quote(dtype)}; known are ${Object.keys(NAMES).join(", ")}`);
  const natural = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= 0;
  if (!Array.isArray(shape) || !shape.every(natural) || !Number.isSafeInteger(sizeOf(shape)))
    throw new Error(`${tensor} has shape ${quote(shape)}; expected whole numbers`);
  if (!Array.isArray(data_offsets) || data_offsets.length !== 2 || !data_offsets.every(natural))
    throw new Error(`${tensor} has data_offsets ${quote(data_offsets)}; expected two whole numbers`);
  const [from, to] = data_offsets as [number, number];
  if (from > to) throw new Error(`${tensor} has data_offsets [${data_offsets}]; expected the smaller first`);
  if (to > room)
    throw new Error(
      `${name}: truncated: tensor ${label(key)} lies at bytes ${from}–${to}, the file has ${room}; fetch it again`,
    );
  const info = NAMES[dtype];
  const bytes = sizeOf(shape as number[]) * DTYPES[info].bytes;
  if (to - from !== bytes)
    throw new Error(`${tensor} ${dtype} ${quote(shape)} needs ${bytes} bytes, its offsets give ${to - from}`);
  return { dtype: info, shape: shape as number[], offset: start + from, bytes };
}

function isObject(x: unknown): x is Record<string, unknown> {
  return x !== null && typeof x === "object" && !Array.isArray(x);
}

/** A value from a file for a sentence: on one line, and short. */
export function quote(x: unknown): string {
  let text: string;
  try {
    text = JSON.stringify(x) ?? "none";
  } catch {
    return "nested too deeply";
  }
  const line = text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
  return line.length > 60 ? `${line.slice(0, 60)}…` : line;
}

function label(key: string): string {
  return /^[\w.:/-]{1,200}$/.test(key) ? key : quote(key);
}

/** A member that the header, or one of its entries, has twice: readers disagree on which one counts. */
function duplicateKey(json: string): string | undefined {
  const seen: Set<string>[] = [];
  let depth = 0;
  let key = "";
  for (let i = 0; i < json.length; i++) {
    const c = json[i];
    if (c === '"') {
      const start = i++;
      for (; json[i] !== '"'; i++) if (json[i] === "\\") i++;
      key = json.slice(start, i + 1);
    } else if (c === "{" || c === "[") {
      if (++depth <= 2) seen[depth] = new Set();
    } else if (c === "}" || c === "]") depth--;
    else if (c === ":" && depth <= 2) {
      const name = JSON.parse(key) as string;
      if (seen[depth].has(name)) return name;
      seen[depth].add(name);
    }
  }
  return undefined;
}

export interface LoadedSafetensors {
  metadata: Readonly<Record<string, string>>;
  tensors: Record<string, HostTensor>;
}

/** Reads a whole file. */
export async function loadSafetensors(path: string): Promise<LoadedSafetensors> {
  await using file = await SafetensorsFile.open(path);
  const tensors: Record<string, HostTensor> = Object.create(null);
  for (const name of file.entries.keys()) tensors[name] = await file.read(name);
  return { metadata: file.metadata, tensors };
}

/** A tensor whose bytes are made when they are written. */
export interface TensorSource {
  dtype: DType;
  shape: readonly number[];
  /** All elements in order, as they lie in memory. */
  bytes(): Uint8Array | AsyncIterable<Uint8Array>;
}

/** A tensor in memory, or at its place in a file, as one to write. */
export function tensorSource(t: HostTensor | TensorEntry): TensorSource {
  const { dtype, shape } = t;
  if ("offset" in t) return { dtype, shape, bytes: () => pieces(t) };
  const { buffer, byteOffset, byteLength } = t.data;
  return { dtype, shape, bytes: () => new Uint8Array(buffer, byteOffset, byteLength) };
}

async function* pieces({ path, offset, bytes }: TensorEntry): AsyncGenerator<Uint8Array, void, undefined> {
  await using file = await open(path, "r");
  for (let done = 0; done < bytes; done += PIECE)
    yield await readBytes(file, offset + done, Math.min(PIECE, bytes - done));
}

/** The bytes of a tensor, piece by piece. */
export async function* piecesOf(t: TensorSource): AsyncGenerator<Uint8Array, void, undefined> {
  const bytes = t.bytes();
  if (bytes instanceof Uint8Array) yield bytes;
  else yield* bytes;
}

/** A tensor in memory. */
export async function readSource(t: TensorSource): Promise<HostTensor> {
  const { dtype, shape } = t;
  const out = new Uint8Array(sizeOf(shape) * DTYPES[dtype].bytes);
  let done = 0;
  for await (const piece of piecesOf(t)) {
    out.set(piece, done);
    done += piece.length;
  }
  return { dtype, shape, data: new DTYPES[dtype].array(out.buffer, 0, sizeOf(shape)) };
}

/**
 * Writes a file atomically, tensors in the order given.
 * @throws when a tensor's data does not fill its shape, or its name is the one that metadata has.
 */
export async function saveSafetensors(
  path: string,
  tensors: Readonly<Record<string, HostTensor>>,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  for (const [name, { shape, data }] of Object.entries(tensors))
    if (data.length !== sizeOf(shape))
      throw new Error(`${path}: tensor ${name} [${shape}] has ${data.length} elements`);
  const sources = Object.entries(tensors).map(([name, t]) => [name, tensorSource(t)] as const);
  await writeSafetensors(path, new Map(sources), metadata);
}

/**
 * The same for tensors of any size: their bytes are asked for one tensor after the other.
 * @throws when its name is the one that metadata has.
 */
export async function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, TensorSource>,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  const header: Record<string, unknown> = Object.create(null); // a tensor may be called __proto__
  if (metadata) header.__metadata__ = metadata;
  let offset = 0;
  for (const [name, { dtype, shape }] of tensors) {
    if (name === "__metadata__") throw new Error(`${path}: a tensor cannot be called __metadata__`);
    const end = offset + sizeOf(shape) * DTYPES[dtype].bytes;
    header[name] = { dtype: CODES[dtype], shape, data_offsets: [offset, end] };
    offset = end;
  }
  // Spaces align the data, so that it can be used in place.
  const json = JSON.stringify(header);
  const raw = new TextEncoder().encode(json);
  const text = new Uint8Array(Math.ceil((8 + raw.length) / 64) * 64 - 8).fill(32);
  text.set(raw);
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
  await atomicWrite(path, length, text, ...Array.from(tensors.values(), (t) => () => t.bytes()));
}

/** Names of tensors that a model needs and a file lacks, has in excess, or has in another shape. */
export interface KeyDifferences {
  missing: string[];
  left: string[];
  /** With both shapes. */
  wrong: string[];
}

/** Compares the tensors a model needs with those a file has. */
export function compareKeys(
  expected: Readonly<Record<string, readonly number[]>>,
  actual: Readonly<Record<string, { shape: readonly number[] }>>,
): KeyDifferences {
  const missing = Object.keys(expected).filter((k) => !Object.hasOwn(actual, k));
  const left = Object.keys(actual).filter((k) => !Object.hasOwn(expected, k));
  const wrong = Object.keys(expected)
    .filter((k) => Object.hasOwn(actual, k) && actual[k].shape.join() !== expected[k].join())
    .map((k) => `${k} (needs [${expected[k]}], has [${actual[k].shape}])`);
  return { missing, left, wrong };
}

/** @throws one error that lists what `compareKeys` finds (the first eight of each, and the counts). */
export function matchKeys(
  what: string,
  expected: Readonly<Record<string, readonly number[]>>,
  actual: Readonly<Record<string, { shape: readonly number[] }>>,
): void {
  const { missing, left, wrong } = compareKeys(expected, actual);
  const parts = [
    ...listed("missing", missing),
    ...listed("left over", left),
    ...listed("of another shape", wrong),
  ];
  if (parts.length > 0) throw new Error(`${what} does not fit: ${parts.join("; ")}`);
}

/** `3 left over: a, b, c`, the first eight names; nothing for none. */
export function listed(what: string, names: readonly string[]): string[] {
  if (names.length === 0) return [];
  const shown = names.slice(0, 8).map((name) => (/^[\w.:/ ()[\],-]{1,200}$/.test(name) ? name : quote(name)));
  return [`${names.length} ${what}: ${shown.join(", ")}${names.length > 8 ? ", …" : ""}`];
}
