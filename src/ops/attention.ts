/** @file Multi-head attention (Vaswani et al. 2017). B batch, T queries, S keys, h heads, d width of one head. */

import { apply, type OpDef, sizeDim, typeText, type Value } from "../graph/index.ts";

export interface AttentionOptions {
  heads: number;
  /** Added to the scores; broadcasts to [B,h,T,S]. */
  mask?: Value;
  /** Default 1/√d. */
  scale?: number;
}

/** [B,T,h·d] → [B,h,T,d] */
function split(x: Value, heads: number): Value {
  const [B, T, D] = x.shape as [number, number, number];
  return x.reshape([B, T, heads, D / heads]).transpose([0, 2, 1, 3]);
}

/** [B,h,T,d] → [B,T,h·d] */
function merge(x: Value): Value {
  const [B, h, T, d] = x.shape as [number, number, number, number];
  return x.transpose([0, 2, 1, 3]).reshape([B, T, h * d]);
}

const LAST: readonly number[] = [0, 1, 3, 2];

const attentionOp: OpDef = {
  name: "MultiHeadAttention",
  infer: ([q, k, v], attrs) => {
    const width = q.shape[2] as number;
    if (q.rank !== 3 || width % (attrs.heads as number) !== 0 || k.shape[2] !== width || v.shape[2] !== width)
      throw new Error(`attention: ${[q, k, v].map(typeText).join(", ")} do not fit ${attrs.heads} heads`);
    return { dtype: q.dtype, shape: q.shape };
  },
  // P = softmax(scale·qkᵀ + mask) is computed again; dS = P·(dP − Σ dP·P), dP = do·vᵀ
  grad: (dy, y) => {
    const heads = y.attrs.heads as number;
    const scale = y.attrs.scale as number;
    const [q, k, v] = y.inputs.slice(0, 3).map((x) => split(x, heads));
    const mask = y.inputs[3];
    const scores = q.matmul(k.transpose(LAST)).mul(scale);
    const p = (mask ? scores.add(mask) : scores).softmax(-1); // [B,h,T,S]
    const dout = split(dy, heads);
    const dp = dout.matmul(v.transpose(LAST)).mul(p);
    const ds = dp.sub(p.mul(dp.sum([-1], true))).mul(scale);
    return [
      merge(ds.matmul(k)),
      merge(ds.transpose(LAST).matmul(q)),
      merge(p.transpose(LAST).matmul(dout)),
      undefined, // masks are not trained
    ];
  },
  flops: ({ inputs: [q, k] }) => sizeDim([4, ...q.shape, k.shape[1]]),
  onnx: (emit, [q, k, v, mask], y) =>
    emit.node(
      "MultiHeadAttention",
      mask ? [q, k, v, "", "", mask] : [q, k, v],
      { num_heads: y.attrs.heads as number, scale: { float: y.attrs.scale as number } },
      { domain: "com.microsoft" },
    ),
};

/** softmax(q·kᵀ·scale + mask)·v for each head. q [B,T,D], k and v [B,S,D] → [B,T,D]. */
export function attention(q: Value, k: Value, v: Value, { heads, mask, scale }: AttentionOptions): Value {
  const factor = scale ?? 1 / Math.sqrt((q.shape[2] as number) / heads);
  const mask4 = mask?.reshape([...Array(4 - mask.rank).fill(1), ...mask.shape]);
  return apply(attentionOp, mask4 ? [q, k, v, mask4] : [q, k, v], { heads, scale: factor });
}
