/** @file How much memory the values of a graph take while it runs. */

import { DTYPES } from "../tensor/index.ts";
import { type Dim, evalDim } from "./dim.ts";
import { type Graph, topological } from "./graph.ts";
import { isInput, type TypeInfo, type Value } from "./value.ts";

/**
 * Bytes that are held at most when nodes run one after the other and each value is freed after its last use. Weights
 * and what depends on them alone are not counted.
 * @param sizes of the symbols. @throws when one is missing.
 */
export function peakBytes(g: Graph, sizes: Readonly<Record<string, number>>): number {
  const order = topological(Object.values(g.outputs));
  const varies = new Set<Value>();
  const lastUse = new Map<Value, number>();
  for (const [i, v] of order.entries()) {
    if (isInput(v) || v.inputs.some((x) => varies.has(x))) varies.add(v);
    for (const x of v.inputs) lastUse.set(x, i);
  }
  for (const v of Object.values(g.outputs)) lastUse.set(v, order.length);

  const known = new Map<Dim, number>();
  const size = (d: Dim): number => {
    const n = known.get(d) ?? evalDim(d, sizes);
    known.set(d, n);
    return n;
  };
  const bytesOf = ({ dtype, shape }: TypeInfo) =>
    shape.reduce<number>((n, d) => n * size(d), DTYPES[dtype].bytes);
  let [held, peak] = [0, 0];
  for (const [i, v] of order.entries()) {
    if (!varies.has(v)) continue;
    held += bytesOf(v);
    peak = Math.max(peak, held + (v.op.scratch ? size(v.op.scratch(v)) : 0));
    for (const x of new Set(v.inputs)) if (lastUse.get(x) === i && varies.has(x)) held -= bytesOf(x);
  }
  return peak;
}
