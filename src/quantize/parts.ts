/** @file A graph in parts that run one after the other, so that not all its weights are in memory at once. */

import { type Graph, inParts, isOutput, isParameter, topological, type Value } from "../graph/index.ts";
import { sizeOf } from "../tensor/index.ts";

/** Cuts a graph so that each part has about `bytes` of float32 parameters. */
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
  return inParts(g, partOf);
}
