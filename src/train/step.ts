/** @file A whole training step as one program: forward, backward, clip, optimiser and average. */

import { type Graph, grad, graph, input, parametersOf, type Value } from "../graph/index.ts";
import { clipFactorValue, matrixOf, type Optimizer, scalarInputs } from "./optimizer.ts";

export interface StepOptions {
  optimizer: Optimizer;
  /** Largest global gradient norm; none when left out. */
  clipNorm?: number;
  /** Keeps an exponential moving average of every parameter. Default false. */
  ema?: boolean;
}

export interface StepGraph {
  graph: Graph;
  /** For `compile`: output name → input name. */
  state: Record<string, string>;
}

/**
 * Outputs `loss`, `grad_norm` and `metrics`; parameters, optimiser state and average are state of the program,
 * under `<key>`, `<state>.<key>` and `ema.<key>`. Scalar inputs are those of `scalarFeeds`; `clip` multiplies
 * the factor that `clipNorm` gives.
 */
export function trainStep(
  loss: Value,
  { optimizer, clipNorm, ema = false }: StepOptions,
  metrics: Record<string, Value> = {},
): StepGraph {
  const parameters = parametersOf([loss]);
  const gradients = grad(
    loss,
    parameters.map((p) => p.value),
  );
  const scalars = scalarInputs();
  const squares = gradients.map((g) => g.mul(g).sum()).reduce((a, b) => a.add(b));
  const clip = clipNorm === undefined ? scalars.clip : clipFactorValue(squares, clipNorm).mul(scalars.clip);
  const outputs: Record<string, Value> = { ...metrics, loss, grad_norm: squares.sqrt() };
  const state: Record<string, string> = {};
  const keep = (name: string, value: Value) => {
    outputs[`next.${name}`] = value;
    state[`next.${name}`] = name;
  };
  parameters.forEach(({ name, shape, value }, i) => {
    const old = optimizer.state.map((s) => input(`${s}.${name}`, "float32", shape));
    const matrix = optimizer.updateMatrix && matrixOf(name, shape as number[]);
    const update = matrix ? optimizer.updateMatrix! : optimizer.update;
    const flat = (v: Value) => (matrix ? v.reshape(matrix) : v);
    const [next, newState] = update(flat(value), flat(gradients[i]), old.map(flat), { ...scalars, clip });
    const updated = next.reshape(shape);
    keep(name, updated);
    for (const [j, v] of newState.entries()) keep(`${optimizer.state[j]}.${name}`, v.reshape(shape));
    if (ema) {
      const average = input(`ema.${name}`, "float32", shape);
      keep(`ema.${name}`, average.mul(scalars.emaDecay).add(updated.sub(updated.mul(scalars.emaDecay))));
    }
  });
  return { graph: graph(outputs), state };
}
