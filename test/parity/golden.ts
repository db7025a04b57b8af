/** @file What `record_models.py` and `record_pipeline.py` recorded: reading it, and comparing with it. */

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { HostTensor } from "../../src/tensor/index.ts";
import { loadSafetensors } from "../../src/weights/index.ts";

export type Tensors = Record<string, HostTensor>;

/** Path of a file or folder among the goldens. */
export function goldenPath(name: string): string {
  return fileURLToPath(new URL(`goldens/${name}`, import.meta.url));
}

export async function goldenJson(name: string): Promise<unknown> {
  return JSON.parse(await readFile(goldenPath(`${name}.json`), "utf8"));
}

/** The tensors of a golden, by the part of their name before the first dot. */
export async function goldenTensors<G extends string>(
  name: string,
  ...groups: readonly G[]
): Promise<Record<G, Tensors>> {
  const { tensors } = await loadSafetensors(goldenPath(`${name}.safetensors`));
  const group = (g: G) =>
    Object.entries(tensors)
      .filter(([k]) => k.startsWith(`${g}.`))
      .map(([k, t]) => [k.slice(g.length + 1), t] as const);
  return Object.fromEntries(groups.map((g) => [g, Object.fromEntries(group(g))])) as Record<G, Tensors>;
}

/** Names with a prefix, so that they do not collide with parameters. */
export function prefixed<T>(prefix: string, record: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(Object.entries(record).map(([k, v]) => [`${prefix}.${k}`, v]));
}

/** Largest magnitude; NaN when any value is. */
export function largest(t: HostTensor): number {
  let max = 0;
  for (const v of t.data) max = Math.max(max, Math.abs(Number(v)));
  return max;
}

/** Largest difference; infinite when the shapes differ. */
export function difference(actual: HostTensor, expected: HostTensor): number {
  if (actual.shape.join() !== expected.shape.join()) return Number.POSITIVE_INFINITY;
  let max = 0;
  for (let i = 0; i < expected.data.length; i++)
    max = Math.max(max, Math.abs(Number(actual.data[i]) - Number(expected.data[i])));
  return max;
}

/**
 * The largest error of several tensors, each relative to the largest value of its reference, or to `floor`
 * where that is larger. `where` names the tensor.
 */
export function worst(actual: Tensors, expected: Tensors, floor = 0): { error: number; where: string } {
  let result = { error: 0, where: "" };
  for (const [name, reference] of Object.entries(expected)) {
    const error = difference(actual[name], reference) / Math.max(largest(reference), floor);
    if (!(error <= result.error)) result = { error, where: name }; // NaN counts as worst
  }
  return result;
}
