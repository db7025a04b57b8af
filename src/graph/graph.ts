/** @file A graph is its named outputs; everything else is reached from them. */

import { evalDim, staticShape } from "./dim.ts";
import { apply, type Init, isInput, isParameter, nameOf, type TypeInfo, type Value } from "./value.ts";

export interface Graph {
  readonly outputs: Readonly<Record<string, Value>>;
}

export function graph(outputs: Readonly<Record<string, Value>>): Graph {
  return { outputs: { ...outputs } };
}

/**
 * All values the roots depend on, inputs before users, in a deterministic order.
 * @param beyond values that are left out, with what only they depend on.
 */
export function topological(roots: readonly Value[], beyond: Iterable<Value> = []): Value[] {
  const order: Value[] = [];
  const done = new Set<Value>(beyond);
  const stack: { v: Value; next: number }[] = [];
  for (const root of roots) {
    if (done.has(root)) continue;
    stack.push({ v: root, next: 0 });
    done.add(root);
    while (stack.length > 0) {
      const top = stack[stack.length - 1];
      if (top.next === top.v.inputs.length) {
        order.push(top.v);
        stack.pop();
        continue;
      }
      const child = top.v.inputs[top.next++];
      if (!done.has(child)) {
        done.add(child);
        stack.push({ v: child, next: 0 });
      }
    }
  }
  return order;
}

export function inputsOf(g: Graph): Value[] {
  return topological(Object.values(g.outputs)).filter(isInput);
}

export interface ParameterInfo {
  name: string;
  shape: number[];
  init: Init;
  value: Value;
}

/** The parameters a graph (or some values) uses, in order of first use: the checkpoint's key list. */
export function parametersOf(of: Graph | readonly Value[]): ParameterInfo[] {
  const roots = "outputs" in of ? Object.values(of.outputs) : of;
  return topological(roots)
    .filter(isParameter)
    .map((value) => ({
      name: nameOf(value),
      shape: staticShape(value.shape),
      init: value.attrs.init as Init,
      value,
    }));
}

/** Rebuilds `roots` with some values replaced; unaffected parts are shared. */
export function substitute(roots: readonly Value[], replace: ReadonlyMap<Value, Value>): Value[] {
  const mapped = new Map<Value, Value>(replace);
  for (const v of topological(roots, replace.keys())) {
    const inputs = v.inputs.map((x) => mapped.get(x)!);
    mapped.set(v, inputs.every((x, i) => x === v.inputs[i]) ? v : apply(v.op, inputs, v.attrs));
  }
  return roots.map((r) => mapped.get(r)!);
}

/** Rebuilds `roots` inputs first; each node that is rebuilt may become another one by `rule`. */
export function rewrite(roots: readonly Value[], rule: (rebuilt: Value, original: Value) => Value): Value[] {
  const mapped = new Map<Value, Value>();
  for (const v of topological(roots)) {
    const inputs = v.inputs.map((x) => mapped.get(x)!);
    const same = inputs.every((x, i) => x === v.inputs[i]);
    mapped.set(v, rule(same ? v : apply(v.op, inputs, v.attrs), v));
  }
  return roots.map((r) => mapped.get(r)!);
}

/**
 * Checks that a graph is legal: names are unique among inputs and among parameters, and every node's types
 * are what its operator infers from its inputs.
 * @throws the first violation, naming the node.
 */
export function verify(g: Graph): Graph {
  const names = new Map<string, Value>();
  for (const v of topological(Object.values(g.outputs))) {
    if (isInput(v) || isParameter(v)) {
      const other = names.get(nameOf(v));
      if (other && other !== v)
        throw new Error(
          `verify: two different leaves are called ${nameOf(v)}: ${typeText(other)} and ${typeText(v)}`,
        );
      names.set(nameOf(v), v);
    }
    const inferred = v.op.infer(v.inputs, v.attrs);
    const types = Array.isArray(inferred) ? inferred : [inferred];
    if (types.map(typeText).join() !== v.outputs.map(typeText).join())
      throw new Error(
        `verify: ${v.op.name} holds ${v.outputs.map(typeText)} but infers ${types.map(typeText)}`,
      );
  }
  return g;
}

/**
 * Multiplications and additions of the products in a graph.
 * @param sizes of the symbols. @throws when one is missing.
 */
export function flopsOf(g: Graph, sizes: Readonly<Record<string, number>> = {}): number {
  return topological(Object.values(g.outputs)).reduce(
    (sum, v) => sum + evalDim(v.op.flops?.(v) ?? 0, sizes),
    0,
  );
}

/** `float32[B,4,H,W]` */
export function typeText(t: TypeInfo): string {
  return `${t.dtype}[${t.shape.join(",")}]`;
}

/** The graph as text, one node a line, for snapshots and debugging. */
export function print(g: Graph): string {
  const number = new Map<Value, string>();
  const lines: string[] = [];
  for (const v of topological(Object.values(g.outputs))) {
    const name = isInput(v) || isParameter(v) ? nameOf(v) : `${number.size}`;
    number.set(v, `%${name}`);
    const attrs = Object.entries(v.attrs)
      .filter(([k, a]) => a !== undefined && !(v.op.leaf && ["name", "dtype", "shape", "init"].includes(k)))
      .map(([k, a]) => `${k}: ${attrText(a)}`)
      .join(", ");
    const args = v.inputs.map((x) => number.get(x)).join(", ");
    lines.push(`%${name} = ${v.op.name}(${args})${attrs ? ` {${attrs}}` : ""} : ${typeText(v)}`);
  }
  for (const [name, v] of Object.entries(g.outputs)) lines.push(`return ${name} = ${number.get(v)}`);
  return lines.join("\n");
}

function attrText(a: unknown): string {
  if (Array.isArray(a)) return `[${a.join(",")}]`;
  if (a !== null && typeof a === "object" && "data" in a) {
    const t = a as { shape: number[]; data: ArrayLike<number | bigint> };
    return t.data.length <= 8 ? `[${Array.from(t.data)}]` : `…[${t.shape}]`;
  }
  return String(a);
}
