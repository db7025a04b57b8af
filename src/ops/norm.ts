/** @file Layer and group normalisation. Fused rules: composed ones take twice the passes over memory. */

import {
  apply,
  type Dim,
  isStatic,
  type OpDef,
  output,
  sizeDim,
  typeText,
  type Value,
} from "../graph/index.ts";
import { floats, ints } from "../tensor/index.ts";

const layerNormOp: OpDef = {
  name: "LayerNormalization",
  infer: ([x, scale]) => {
    if (scale.shape[0] !== x.shape[x.rank - 1])
      throw new Error(`LayerNormalization: scale ${typeText(scale)} does not fit ${typeText(x)}`);
    const stat = { dtype: x.dtype, shape: [...x.shape.slice(0, -1), 1] };
    return [{ dtype: x.dtype, shape: x.shape }, stat, stat];
  },
  // With x̂ = (x − μ)/σ and g = dy·scale: dx = (g − mean(g) − x̂·mean(g·x̂))/σ
  grad: (dy, y) => {
    const [x, scale] = y.inputs;
    const rstd = output(y, 2);
    const xhat = x.sub(output(y, 1)).mul(rstd);
    const g = dy.mul(scale);
    const dx = g
      .sub(g.mean([-1], true))
      .sub(xhat.mul(g.mul(xhat).mean([-1], true)))
      .mul(rstd);
    const rows = [-1, scale.shape[0]];
    return [dx, dy.mul(xhat).reshape(rows).sum([0]), dy.reshape(rows).sum([0])];
  },
  onnx: (emit, inputs, y) =>
    emit.node(
      "LayerNormalization",
      inputs,
      { axis: -1, epsilon: { float: y.attrs.eps as number } },
      { outputs: 3 },
    ),
};

/** (x − μ)/√(σ² + eps)·scale + bias over the last axis (Ba et al. 2016). scale, bias [D]. */
export function layerNormalization(x: Value, scale: Value, bias: Value, eps = 1e-5): Value {
  return apply(layerNormOp, [x, scale, bias], { eps });
}

const groupNormOp: OpDef = {
  name: "GroupNormalization",
  infer: ([x, scale], attrs) => {
    const groups = attrs.groups as number;
    const channels = x.shape[1] as number;
    if (channels % groups !== 0 || scale.shape[0] !== channels)
      throw new Error(
        `GroupNormalization: ${groups} groups and scale ${typeText(scale)} do not fit ${typeText(x)}`,
      );
    const stat = { dtype: x.dtype, shape: [x.shape[0], groups, 1] as Dim[] };
    return [{ dtype: x.dtype, shape: x.shape }, stat, stat];
  },
  // Everything but three passes over x and dy happens on sums per channel:
  // dx = (scale/σ)·dy − (m/σ²)·x + (μ·m/σ² − s₁/(σN)) with s₁ = Σ scale·dy, m = Σ scale·dy·x̂ / N over a group
  grad: (dy, y) => {
    const [x, scale] = y.inputs;
    const groups = y.attrs.groups as number;
    const [B, C] = x.shape as number[];
    const per = C / groups;
    const n = (sizeDim(x.shape) as number) / (B * groups);
    const mean = output(y, 1);
    const rstd = output(y, 2);
    const dy3 = dy.reshape([B, C, -1]);
    const sumDy = dy3.sum([2]).reshape([B, groups, per]);
    const sumDyX = dy3
      .mul(x.reshape([B, C, -1]))
      .sum([2])
      .reshape([B, groups, per]);
    const sumDyXhat = sumDyX.sub(sumDy.mul(mean)).mul(rstd); // [B,G,C/G]
    const grouped = scale.reshape([1, groups, per]);
    const s1 = sumDy.mul(grouped).sum([2], true); // [B,G,1]
    const m = sumDyXhat.mul(grouped).sum([2], true).div(n);
    const slope = m.mul(rstd).mul(rstd).neg();
    const offset = mean.mul(slope).neg().sub(s1.mul(rstd).div(n));
    const dx = dy3
      .mul(grouped.mul(rstd).reshape([B, C, 1]))
      .reshape([B, groups, -1])
      .add(x.reshape([B, groups, -1]).mul(slope).add(offset))
      .reshape(x.shape);
    return [dx, sumDyXhat.sum([0]).reshape([C]), sumDy.sum([0]).reshape([C])];
  },
  onnx: (emit, [x, scale, bias], y) => {
    const groups = y.attrs.groups as number;
    const { shape } = y.inputs[0];
    const channel = emit.constant(ints([y.rank - 1], [shape[1] as number, ...shape.slice(2).map(() => 1)]));
    const [rows] = emit.node("Reshape", [x, emit.constant(ints([3], [0, groups, -1]))]);
    const n = isStatic(shape) ? (sizeDim(shape.slice(1)) as number) / groups : 1;
    let ones = emit.constant(floats([n], new Float32Array(n).fill(1)));
    if (!isStatic(shape)) [ones] = emit.node("Expand", [ones, emit.node("Shape", [rows], { start: 2 })[0]]);
    const [xhat, mean, rstd] = emit.node(
      "LayerNormalization",
      [rows, ones],
      { axis: -1, epsilon: { float: y.attrs.eps as number } },
      { outputs: 3 },
    );
    const [back] = emit.node("Reshape", [xhat, emit.shape(shape)]);
    const [scaled] = emit.node("Mul", [back, emit.node("Reshape", [scale, channel])[0]]);
    const [out] = emit.node("Add", [scaled, emit.node("Reshape", [bias, channel])[0]]);
    return [out, mean, rstd];
  },
};

/** Normalises each group of channels (Wu & He 2018). x [B,C,...], scale and bias [C]; eps default 1e-5. */
export function groupNormalization(
  x: Value,
  scale: Value,
  bias: Value,
  { groups, eps = 1e-5 }: { groups: number; eps?: number },
): Value {
  return apply(groupNormOp, [x, scale, bias], { groups, eps });
}
