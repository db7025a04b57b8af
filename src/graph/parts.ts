/** @file One graph as several that run one after the other. */

import { type Graph, graph, substitute, topological } from "./graph.ts";
import { input, isInput, nameOf, type Value } from "./value.ts";

/**
 * Graphs of the values of each part, in order; parts that make nothing are left out. What one makes for later ones is an
 * output of it, and an input of these under the same name.
 * @param partOf numbers; no part takes what a later one makes. Values without one belong to every part that needs them.
 */
export function inParts(g: Graph, partOf: ReadonlyMap<Value, number>): Graph[] {
  const crossing = new Map<Value, string>();
  for (const [v, part] of partOf)
    for (const x of v.inputs) {
      const from = partOf.get(x);
      if (from !== undefined && from < part)
        crossing.set(x, crossing.get(x) ?? `part ${from}, ${crossing.size}`);
    }

  return [...new Set(partOf.values())]
    .sort((a, b) => a - b)
    .flatMap((part) => {
      const made = (v: Value) => partOf.get(v) === part;
      const named = [
        ...[...crossing].filter(([v]) => made(v)).map(([v, name]) => [name, v] as const),
        ...Object.entries(g.outputs).filter(([, v]) => made(v)),
      ];
      if (named.length === 0) return [];
      const before = [...crossing].filter(([v]) => partOf.get(v)! < part);
      const holes = new Map(before.map(([v, name]) => [v, input(name, v.dtype, v.shape)]));
      const values = substitute(
        named.map(([, v]) => v),
        holes,
      );
      return [graph(Object.fromEntries(named.map(([name], i) => [name, values[i]])))];
    });
}

/**
 * A graph that runs many times, in two: what depends on the inputs that stay (and on weights), and the rest, which
 * depends on those that vary as well. One where nothing is won.
 * @throws when an output does not vary.
 */
export function hoist(g: Graph, stays: readonly string[], varies: readonly string[]): Graph[] {
  const [FIRST, EACH] = [0, 1];
  const partOf = new Map<Value, number>();
  for (const v of topological(Object.values(g.outputs))) {
    const parts = isInput(v)
      ? [stays.includes(nameOf(v)) ? FIRST : varies.includes(nameOf(v)) ? EACH : -1]
      : v.inputs.map((x) => partOf.get(x) ?? -1);
    const part = Math.max(-1, ...parts);
    if (part >= 0) partOf.set(v, part);
  }
  for (const [name, v] of Object.entries(g.outputs))
    if (partOf.get(v) !== EACH)
      throw new Error(`hoist: output ${name} does not depend on ${varies.join(" or ")}`);
  const nodes = [...partOf].filter(([v]) => !isInput(v)); // each part has the inputs that it needs
  return inParts(g, new Map(nodes));
}
