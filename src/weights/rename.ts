/** @file Tensors under other names: one table of data, read in both directions. */

import { DTYPES, type HostTensor } from "../tensor/index.ts";
import { piecesOf, readSource, type TensorEntry, type TensorSource, tensorSource } from "./safetensors.ts";

/** One name in two namings. */
export interface KeyRule {
  /** A key, or a dotted prefix of keys. Several keys are rows of one tensor of theirs, one after the other. */
  ours: string | readonly string[];
  theirs: string;
  /** Where theirs lies otherwise: a matrix [a,b] as a kernel [a,b,1,1], or as its transpose. */
  layout?: "kernel" | "transposed";
}

export class KeyTable {
  private readonly byOurs = new Map<string, KeyRule>();
  private readonly byTheirs = new Map<string, KeyRule>();

  /** @throws when a name stands twice. */
  constructor(rules: readonly KeyRule[]) {
    for (const rule of rules) {
      for (const name of [rule.ours].flat()) add(this.byOurs, name, rule);
      add(this.byTheirs, rule.theirs, rule);
    }
  }

  /** Their key of one of ours. */
  toTheirs(key: string): string | undefined {
    const [rule, rest] = longest(this.byOurs, key);
    if (!rule || (typeof rule.ours !== "string" && rest !== "")) return undefined;
    return rule.theirs + rest;
  }

  /** Our keys of one of theirs: one, or those whose rows it has. */
  toOurs(key: string): { keys: readonly string[]; layout?: KeyRule["layout"] } | undefined {
    const [rule, rest] = longest(this.byTheirs, key);
    if (!rule) return undefined;
    const keys = typeof rule.ours === "string" ? [rule.ours + rest] : rule.ours;
    if (keys.some((k) => this.toTheirs(k) !== key)) return undefined; // a name that ours never get
    return { keys, layout: rule.layout };
  }

  /**
   * Tensors under their names, after a prefix.
   * @throws one sentence with the first key that the table lacks.
   */
  write(tensors: ReadonlyMap<string, TensorSource>, prefix = ""): Map<string, TensorSource> {
    const out = new Map<string, TensorSource>();
    for (const key of tensors.keys()) {
      const name = this.toTheirs(key);
      const found = name === undefined ? undefined : this.toOurs(name);
      if (!found || found.keys.some((k) => !tensors.has(k)))
        throw new Error(`${key} has no place in a single-file checkpoint`);
      if (out.has(prefix + name)) continue; // a tensor that has several of ours
      const parts = found.keys.map((k) => tensors.get(k)!);
      out.set(prefix + name, written(parts, found.layout));
    }
    return out;
  }

  /**
   * The tensors of a file that have a prefix, under our names: their places, or, where they lie otherwise, copies.
   * Keys that the table lacks stay as they are.
   */
  async read(
    { entries }: { entries: ReadonlyMap<string, TensorEntry> },
    prefix = "",
  ): Promise<Map<string, TensorEntry | HostTensor>> {
    const out = new Map<string, TensorEntry | HostTensor>();
    for (const [name, entry] of entries) {
      if (!name.startsWith(prefix)) continue;
      const { keys, layout } = this.toOurs(name.slice(prefix.length)) ?? { keys: [name] };
      const [rows, ...rest] = entry.shape;
      if (layout === "transposed" && rest.length === 1)
        out.set(keys[0], transposed(await readSource(tensorSource(entry))));
      else if (layout === "kernel" && rest.length === 3 && rest[1] * rest[2] === 1)
        out.set(keys[0], { ...entry, shape: [rows, rest[0]] });
      else if (keys.length > 1 && rows % keys.length !== 0) out.set(name, entry);
      else
        for (const [i, key] of keys.entries()) {
          const bytes = entry.bytes / keys.length;
          const shape = keys.length > 1 ? [rows / keys.length, ...rest] : entry.shape;
          out.set(key, { ...entry, shape, bytes, offset: entry.offset + i * bytes });
        }
    }
    return out;
  }
}

function add(map: Map<string, KeyRule>, name: string, rule: KeyRule): void {
  if (map.has(name)) throw new Error(`${name} stands twice in a key table`);
  map.set(name, rule);
}

/** The rule of the longest dotted prefix of a key, and the rest of the key. */
function longest(map: ReadonlyMap<string, KeyRule>, key: string): [KeyRule | undefined, string] {
  for (let end = key.length; end > 0; end = key.lastIndexOf(".", end - 1)) {
    const rule = map.get(key.slice(0, end));
    if (rule) return [rule, key.slice(end)];
  }
  return [undefined, key];
}

function written(parts: readonly TensorSource[], layout?: KeyRule["layout"]): TensorSource {
  const [first] = parts;
  const { dtype, shape } = first;
  const [rows, ...rest] = shape;
  if (layout === "transposed")
    return {
      dtype,
      shape: [...shape].reverse(),
      bytes: async function* () {
        yield* piecesOf(tensorSource(transposed(await readSource(first))));
      },
    };
  if (layout === "kernel" && rest.length === 1) return { ...first, shape: [...shape, 1, 1] };
  if (parts.length === 1) return first;
  return {
    dtype,
    shape: [rows * parts.length, ...rest],
    bytes: async function* () {
      for (const part of parts) yield* piecesOf(part);
    },
  };
}

/** A matrix with rows and columns exchanged. */
function transposed({ dtype, shape: [rows, columns], data }: HostTensor): HostTensor {
  const out = new DTYPES[dtype].array(data.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = data[i * columns + j];
  return { dtype, shape: [columns, rows], data: out };
}
