/** @file Which products of a graph may have int8 weights, and the graph in which some of them do. */

import {
  type Graph,
  graph,
  isParameter,
  nameOf,
  parameter,
  rewrite,
  topological,
  type Value,
} from "../graph/index.ts";
import { rowsOf } from "../ops/index.ts";
import { sizeOf } from "../tensor/index.ts";

/** A linear layer or a convolution, or one of several that share the rows of a weight. */
export interface Int8Layer {
  /** Name of its weight, and the rows where it has not all: `a.weight`, `a.weight:0-640`. */
  key: string;
  weight: string;
  rows: readonly [from: number, to: number];
  /** Of these rows, [out, ...]. */
  shape: readonly number[];
  /** The product. */
  node: Value;
}

const NONE = { kind: "constant", value: 0 } as const;

/** The layers of a graph whose weights are parameters. */
function layersOf(g: Graph): Int8Layer[] {
  return topological(Object.values(g.outputs)).flatMap((node) => {
    if (!node.op.int8) return [];
    const [, w] = node.inputs;
    const shape = w.shape as readonly number[];
    const { of, from, to } = rowsOf(w) ?? { of: w, from: 0, to: shape[0] };
    if (!isParameter(of)) return [];
    const weight = nameOf(of);
    const key = of === w ? weight : `${weight}:${from}-${to}`;
    return [{ key, weight, rows: [from, to] as const, shape, node }];
  });
}

/**
 * The layers of a graph that may be int8: those with at least `minimum` weights, but for two kinds that are cheap in
 * float and whose errors weigh most. Convolutions of one position carry the residual stream of a UNet on; layers with
 * one row a picture, such as embeddings of the timestep, reach every position of it.
 */
export function int8Layers(g: Graph, minimum = 0): Int8Layer[] {
  return layersOf(g).filter(({ node, shape }) => {
    const kernel = shape.slice(2);
    const isPointwise = kernel.length > 0 && sizeOf(kernel) === 1;
    return node.rank > 2 && !isPointwise && sizeOf(shape) >= minimum;
  });
}

/** The weight that a layer takes, or takes rows of. */
export function weightOfKey(key: string): string {
  return key.replace(/:\d+-\d+$/, "");
}

/** Names of a layer's int8 matrix [inner, out] and of its scales [out]. */
export function int8Names(key: string): { matrix: string; scale: string } {
  return { matrix: `${key}.int8`, scale: `${key}.scale` };
}

/** What stands in for the product `y` of a layer. */
export function int8Product({ key, shape: [out, ...rest] }: Int8Layer, y: Value): Value {
  const { matrix, scale } = int8Names(key);
  return y.op.int8!.product(
    y,
    parameter(matrix, [sizeOf(rest), out], NONE, "int8"),
    parameter(scale, [out], NONE),
  );
}

/**
 * The graph with int8 weights in the layers of these keys.
 * @param branch what is added to the output of a layer, which is computed in float: an adapter, for example. It gets
 * the layer and its product in float.
 */
export function withInt8(
  g: Graph,
  keys: ReadonlySet<string>,
  branch?: (layer: Int8Layer, y: Value) => Value | undefined,
): Graph {
  const layers = new Map(layersOf(g).map((layer) => [layer.node, layer]));
  const values = rewrite(Object.values(g.outputs), (y, original) => {
    const layer = layers.get(original);
    if (!layer) return y;
    const added = branch?.(layer, y);
    const product = keys.has(layer.key) ? int8Product(layer, y) : y;
    return added ? product.add(added) : product;
  });
  return graph(Object.fromEntries(Object.keys(g.outputs).map((name, i) => [name, values[i]])));
}
