/**
 * @file Adapters as scopes: layers that ask them for weights get adapted ones. A weight [out, in, k, k] is the matrix
 * [out, width], width = in·k·k; r rank.
 */

import { apply, type Init, type Value } from "../graph/index.ts";
import { conv, project, rowsOf } from "../ops/index.ts";
import { sizeOf } from "../tensor/index.ts";
import { fanIn } from "./layers.ts";
import type { Scope } from "./scope.ts";

/** What a low-rank adapter (Hu et al. 2022) does to the module at a path such as `mid_block.resnets.0.conv1`. */
export interface Adapter {
  /** Its parameters are `<path>.<name>_down.weight` and `<path>.<name>_up.weight`. Default "lora". */
  name?: string;
  /** Rank there; undefined where the module stays as it is. */
  rank(path: string): number | undefined;
  /** Factor on up·down there: strength · alpha / rank. */
  scale(path: string): number;
}

const ZERO: Init = { kind: "constant", value: 0 };

/**
 * W + scale · up·down in place of W: down [r,in,k,k], up [out,r,1,1], of linear layers without the kernel. As in
 * peft, down starts as a layer's weight does and up at zero, so that a fresh adapter changes nothing.
 */
export function loraScope(p: Scope, adapter: Adapter): Scope {
  return {
    path: p.path,
    at: (name) => loraScope(p.at(name), adapter),
    param: (name, shape, init) => {
      const weight = p.param(name, shape, init);
      const r = name === "weight" ? adapter.rank(p.path) : undefined;
      if (r === undefined) return weight;
      const [out, ...rest] = shape;
      const width = sizeOf(rest);
      const { name: prefix = "lora" } = adapter;
      const down = p.param(`${prefix}_down.weight`, [r, ...rest], fanIn(width));
      const up = p.param(`${prefix}_up.weight`, [out, r, ...rest.slice(1).map(() => 1)], ZERO);
      const product = up.reshape([out, r]).matmul(down.reshape([r, width]));
      return weight.add(product.mul(adapter.scale(p.path)).reshape(shape));
    },
  };
}

/** A change of one parameter, as trained adapters bring it. */
export interface Change {
  /**
   * product: up [out,r] · down [r,width]. hadamard: (up1·down1) ∘ (up2·down2). kronecker: left [a,b] ⊗ right
   * [out/a, width/b]. full: diff, shaped like the parameter.
   */
  kind: "product" | "hadamard" | "kronecker" | "full";
  factor(name: string): Value;
  scale: number;
  /** How much of the change is made: a number, or a scalar. */
  strength: number | Value;
  /** DoRA (Liu et al. 2024): [out,1] for norms of rows, [1,in,1] for norms over outputs and kernel. */
  magnitude?: Value;
}

/**
 * Changed parameters in place of those of `p`. Each change is one of the parameter as it is: W + Σ strength·(D − W),
 * where D is W + scale·ΔW, or, with a magnitude m, m·(W + scale·ΔW)/‖W + scale·ΔW‖.
 * @param changes of a parameter, by its full name.
 */
export function changedScope(p: Scope, changes: (name: string) => readonly Change[]): Scope {
  return {
    path: p.path,
    at: (name) => changedScope(p.at(name), changes),
    param: (name, shape, init) => {
      const weight = p.param(name, shape, init);
      const found = changes(p.path === "" ? name : `${p.path}.${name}`);
      return found.reduce((sum, change) => sum.add(changeOf(weight, shape, change)), weight);
    },
  };
}

/**
 * What a product without magnitude adds to the output of a layer whose weight it is not added to:
 * strength · scale · up(down(x)).
 * @param y the layer's product, of x and a weight or of rows of one.
 */
export function changeBranch(y: Value, { factor, scale, strength }: Change): Value {
  const [x, weight] = y.inputs;
  const rows = rowsOf(weight);
  const [up, down] = [factor("up"), factor("down")];
  const [r] = down.shape;
  const [, ...rest] = weight.shape;
  const h = apply(y.op, [x, down.reshape([r, ...rest])], y.attrs); // the layer itself, with r outputs
  const own = rows ? up.slice(0, rows.from, rows.to) : up;
  const kernel = rest.slice(1).map(() => 1);
  const added = kernel.length > 0 ? conv(h, own.reshape([own.shape[0], r, ...kernel])) : project(h, own);
  return added.mul(typeof strength === "number" ? strength * scale : strength.mul(scale));
}

function changeOf(weight: Value, shape: readonly number[], change: Change): Value {
  const { scale, strength, magnitude } = change;
  const delta = deltaOf(shape, change);
  if (!magnitude) return delta.mul(typeof strength === "number" ? strength * scale : strength.mul(scale));
  const [out, inputs] = shape;
  const rows = magnitude.rank === 2;
  const grouped = rows ? [out, sizeOf(shape) / out] : [out, inputs, sizeOf(shape) / (out * inputs)];
  const moved = weight.add(delta.mul(scale)).reshape(grouped);
  const norms = moved
    .mul(moved)
    .sum(rows ? [1] : [0, 2], true)
    .sqrt();
  const decomposed = moved.mul(magnitude.div(norms.add(EPSILON))).reshape(shape);
  return decomposed.sub(weight).mul(strength);
}

/** Of float32: rows of zeros stay zeros, as in LyCORIS and ComfyUI. */
const EPSILON = 2 ** -23;

function deltaOf(shape: readonly number[], { kind, factor }: Change): Value {
  const product = (i: number | "") => factor(`up${i}`).matmul(factor(`down${i}`));
  if (kind === "full") return factor("diff");
  if (kind === "product") return product("").reshape(shape);
  if (kind === "hadamard") return product(1).mul(product(2)).reshape(shape);
  const [left, right] = [factor("left"), factor("right")];
  const [[a, b], [c, d]] = [left.shape, right.shape];
  return left
    .reshape([a, 1, b, 1])
    .mul(right.reshape([1, c, 1, d]))
    .reshape(shape);
}
