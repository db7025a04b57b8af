/** @file Activations that the runtime has as one kernel. */

import { apply, type OpDef, type Value } from "../graph/index.ts";

function activation(name: string, grad: OpDef["grad"], onnx: OpDef["onnx"]): OpDef {
  return { name, infer: ([x]) => ({ dtype: x.dtype, shape: x.shape }), grad, onnx };
}

/** x·σ(αx) */
const quickGeluOp = activation(
  "QuickGelu",
  // y' = s + α·y·(1 − s) with s = σ(αx)
  (dy, y) => {
    const alpha = y.attrs.alpha as number;
    const s = y.inputs[0].mul(alpha).sigmoid();
    return [s.add(y.sub(y.mul(s)).mul(alpha)).mul(dy)];
  },
  (emit, inputs, y) =>
    emit.node(
      "QuickGelu",
      inputs,
      { alpha: { float: y.attrs.alpha as number } },
      { domain: "com.microsoft" },
    ),
);

const geluOp = activation(
  "Gelu",
  // y' = Φ(x) + x·φ(x)
  (dy, { inputs: [x] }) => {
    const cdf = x.mul(Math.SQRT1_2).erf().mul(0.5).add(0.5);
    const pdf = x
      .mul(x)
      .mul(-0.5)
      .exp()
      .mul(1 / Math.sqrt(2 * Math.PI));
    return [cdf.add(x.mul(pdf)).mul(dy)];
  },
  (emit, inputs) => emit.node("Gelu", inputs),
);

/** x·σ(x) (Elfwing et al. 2017; also swish) */
export function silu(x: Value): Value {
  return apply(quickGeluOp, [x], { alpha: 1 });
}
/** x·σ(1.702x), the activation of OpenAI's CLIP */
export function quickGelu(x: Value): Value {
  return apply(quickGeluOp, [x], { alpha: 1.702 });
}
/** x·Φ(x), exact (Hendrycks & Gimpel 2016) */
export function gelu(x: Value): Value {
  return apply(geluOp, [x]);
}
