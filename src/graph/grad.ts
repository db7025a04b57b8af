/** @file Reverse-mode differentiation, graph → graph. Operators bring one rule each; the rest happens here. */

import { floats } from "../tensor/index.ts";
import type { Dim } from "./dim.ts";
import { substitute, topological, typeText } from "./graph.ts";
import { apply, constant, input, isParameter, type OpDef, type Value } from "./value.ts";

/**
 * Gradients of a scalar with respect to `wrt`; zeros where it does not depend on them.
 * @throws when `loss` is not a scalar or a node on the way is not differentiable.
 */
export function grad(loss: Value, wrt: readonly Value[]): Value[] {
  if (loss.rank !== 0) throw new Error(`grad: the loss must be a scalar, got ${typeText(loss)}`);
  return vjp([loss], [constant(floats([], [1]))], wrt);
}

/** Vector-Jacobian product: Σ dyᵢ · ∂yᵢ/∂w for each w. */
export function vjp(ys: readonly Value[], dys: readonly Value[], wrt: readonly Value[]): Value[] {
  const order = topological(ys);
  const targets = new Set(wrt);
  const needed = new Set<Value>(); // on a path from wrt to ys
  for (const v of order) if (targets.has(v) || v.inputs.some((x) => needed.has(x))) needed.add(v);

  const total = new Map<Value, Value>();
  const accumulate = (v: Value, g: Value) => {
    const sum = total.get(v);
    total.set(v, sum ? sum.add(g) : g);
  };
  ys.forEach((y, i) => {
    if (needed.has(y)) accumulate(y, unbroadcast(dys[i], y));
  });
  for (const v of order.reverse()) {
    const dy = total.get(v);
    if (!dy || v.inputs.length === 0 || !v.inputs.some((x) => needed.has(x))) continue;
    if (!v.op.grad) throw new Error(`grad: ${v.op.name} ${typeText(v)} is not differentiable`);
    v.op.grad(dy, v).forEach((g, i) => {
      const x = v.inputs[i];
      if (g && needed.has(x)) accumulate(x, unbroadcast(g, x));
    });
  }
  return wrt.map((w) => total.get(w) ?? w.mul(0));
}

/** Sums the axes along which `x` was broadcast. */
function unbroadcast(g: Value, x: Value): Value {
  const extra = g.rank - x.rank;
  const axes = g.shape.flatMap((d: Dim, i) =>
    i < extra || (x.shape[i - extra] === 1 && d !== 1) ? [i] : [],
  );
  if (axes.length === 0) return g;
  const summed = g.sum(axes, true);
  return extra > 0 ? summed.reshape(x.shape) : summed;
}

/** Passes the value on and the gradient not. */
export function stopGradient(x: Value): Value {
  return apply(stopGradientOp, [x]);
}

const stopGradientOp: OpDef = {
  name: "StopGradient",
  infer: ([x]) => ({ dtype: x.dtype, shape: x.shape }),
  grad: () => [undefined],
  onnx: (_, [x]) => [x],
};

/**
 * Recomputation: `body(...inputs)` whose inner values are not kept for the backward pass but computed again
 * there (Chen et al. 2016, "Training deep nets with sublinear memory cost"). Activations must come in through
 * `inputs`; parameters may be captured.
 */
export function checkpoint(body: (...inputs: Value[]) => Value, ...inputs: Value[]): Value {
  const y = body(...inputs);
  const boundary = [...new Set(inputs)];
  const captured = topological(substitute([y], holesFor(boundary))).filter(isParameter);
  return apply(checkpointOp, [y, ...boundary, ...captured], { activations: boundary.length });
}

/** Placeholders, so that what is derived on them ends at the boundary. */
function holesFor(boundary: readonly Value[]): Map<Value, Value> {
  return new Map(boundary.map((x, i) => [x, input(`hole ${i}`, x.dtype, x.shape)]));
}

const checkpointOp: OpDef = {
  name: "Checkpoint",
  infer: ([y]) => ({ dtype: y.dtype, shape: y.shape }),
  grad: (dy, node) => {
    const [y, ...leaves] = node.inputs;
    const activations = leaves.slice(0, node.attrs.activations as number);
    const holes = holesFor([...activations, dy]);
    const [body] = substitute([y], holes);
    const wrt = leaves.map((x) => holes.get(x) ?? x);
    const grads = vjp([body], [holes.get(dy)!], wrt);
    // The rule moves onto fresh copies: the zero that depends on dy keeps the runtime from merging the copy with
    // the original or running it early.
    const late = dy.reshape([-1]).slice(0, 0, 1).mul(0);
    const fresh = (x: Value) =>
      x === dy || x.dtype !== dy.dtype ? x : x.add(late.reshape(x.shape.map(() => 1)));
    return [undefined, ...substitute(grads, new Map([...holes].map(([x, hole]) => [hole, fresh(x)])))];
  },
  onnx: (_, [y]) => [y],
};
