/** @file A graph in parts that run one after the other, so that not all its weights are in memory at once. */

import {
  type Graph,
  graph,
  input,
  isOutput,
  isParameter,
  substitute,
  topological,
  type Value,
} from "../graph/index.ts";
import { sizeOf } from "../tensor/index.ts";

/**
 * Cuts a graph so that each part has about `bytes` of float32 parameters. What a part computes for later ones is an
 * output of it, and an input of these under the same name.
 */
export function cut(g: Graph, bytes: number): Graph[] {
  const order = topological(Object.values(g.outputs));
  const partOf = new Map<Value, number>();
  let parts = 0;
  let held = 0;
  for (const v of order) {
    if (isParameter(v)) {
      const size = 4 * sizeOf(v.shape as readonly number[]);
      if (held > 0 && held + size > bytes) {
        parts++;
        held = 0;
      }
      held += size;
    } else if (!v.op.leaf) partOf.set(v, isOutput(v) ? partOf.get(v.inputs[0])! : parts);
  }

  const crossing = new Map<Value, string>();
  for (const v of partOf.keys())
    for (const x of v.inputs)
      if ((partOf.get(x) ?? Number.POSITIVE_INFINITY) < partOf.get(v)!)
        crossing.set(x, crossing.get(x) ?? `part ${partOf.get(x)}, ${crossing.size}`);

  const found: Graph[] = [];
  for (let part = 0; part <= parts; part++) {
    const made = (v: Value) => partOf.get(v) === part;
    const named = [
      ...[...crossing].filter(([v]) => made(v)).map(([v, name]) => [name, v] as const),
      ...Object.entries(g.outputs).filter(([, v]) => made(v)),
    ];
    if (named.length === 0) continue;
    const before = [...crossing].filter(([v]) => partOf.get(v)! < part);
    const holes = new Map(before.map(([v, name]) => [v, input(name, v.dtype, v.shape)]));
    const values = substitute(
      named.map(([, v]) => v),
      holes,
    );
    found.push(graph(Object.fromEntries(named.map(([name], i) => [name, values[i]]))));
  }
  return found;
}
