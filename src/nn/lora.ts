/** @file Low-rank adapters (Hu et al. 2022) as a scope: layers that ask it for weights get adapted ones. */

import type { Init } from "../graph/index.ts";
import { sizeOf } from "../tensor/index.ts";
import { fanIn } from "./layers.ts";
import type { Scope } from "./scope.ts";

/** What an adapter does to the module at a path such as `mid_block.resnets.0.conv1`. */
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
