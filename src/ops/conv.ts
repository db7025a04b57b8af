/** @file Convolution in NCHW. B batch, C/O channels in/out, H W input, h w output, k kernel. */

import {
  addDim,
  apply,
  constant,
  type Dim,
  floorDivDim,
  type OpDef,
  sizeDim,
  typeText,
  type Value,
} from "../graph/index.ts";
import { ints } from "../tensor/index.ts";
import { convInt8 } from "./int8.ts";
import { gemm } from "./matmul.ts";
import { gather } from "./movement.ts";

export interface ConvOptions {
  /** Default [1, 1]. */
  strides?: readonly [number, number];
  /** top, left, bottom, right; default zeros. */
  pads?: readonly [number, number, number, number];
  group?: number;
}

function outSize(size: Dim, before: number, after: number, k: number, stride: number): Dim {
  return addDim(floorDivDim(addDim(size, before + after - k), stride), 1);
}

const convOp: OpDef = {
  name: "Conv",
  infer: ([x, w, b], attrs) => {
    const { strides, pads, group } = attrs as unknown as Required<ConvOptions>;
    if (x.rank !== 4 || w.rank !== 4)
      throw new Error(`Conv: expected NCHW, got ${typeText(x)} and ${typeText(w)}`);
    const needs = group === 1 ? w.shape[1] : (w.shape[1] as number) * group; // any number of them
    if (x.shape[1] !== needs)
      throw new Error(`Conv: weight ${typeText(w)} needs ${needs} channels, x is ${typeText(x)}`);
    if (b && b.shape[0] !== w.shape[0])
      throw new Error(`Conv: bias ${typeText(b)} does not fit ${typeText(w)}`);
    const [, , kh, kw] = w.shape as number[];
    return {
      dtype: x.dtype,
      shape: [
        x.shape[0],
        w.shape[0],
        outSize(x.shape[2], pads[0], pads[2], kh, strides[0]),
        outSize(x.shape[3], pads[1], pads[3], kw, strides[1]),
      ],
    };
  },
  grad: (dy, { inputs: [x, w, b], attrs }) => {
    const options = attrs as unknown as Required<ConvOptions>;
    if (options.group !== 1) throw new Error("Conv: the gradient with group > 1 is missing");
    return [gradInput(dy, x, w, options), gradWeight(dy, x, w, options), b && pixels(dy).sum([0])];
  },
  flops: (y) => sizeDim([2, ...y.shape, ...y.inputs[1].shape.slice(1)]),
  int8: {
    axes: [2, 3, 1, 0],
    product: ({ inputs: [x, w, b], shape, attrs }, matrix, scale) => {
      const { strides, pads, group } = attrs as unknown as Required<ConvOptions>;
      if (group !== 1) throw new Error("Conv: int8 weights with group > 1 are missing");
      return convInt8(x, matrix, scale, b, { kernel: w.shape.slice(2) as number[], strides, pads, shape });
    },
  },
  onnx: (emit, inputs, y) =>
    emit.node("Conv", inputs, {
      strides: y.attrs.strides as number[],
      pads: y.attrs.pads as number[],
      group: y.attrs.group as number,
      kernel_shape: y.inputs[1].shape.slice(2) as number[],
    }),
};

/** A unit-stride gradient is a convolution with the kernel turned around; others use ConvTranspose. */
function gradInput(dy: Value, x: Value, w: Value, { strides, pads }: Required<ConvOptions>): Value {
  const [O, C, kh, kw] = w.shape as number[];
  if (strides[0] === 1 && strides[1] === 1) {
    const turned = w
      .reshape([O, C, kh * kw])
      .slice(2, -1, -kh * kw - 1, -1)
      .transpose([1, 0, 2])
      .reshape([C, O, kh, kw]);
    const [t, l, bottom, r] = pads;
    return conv(dy, turned, undefined, { pads: [kh - 1 - t, kw - 1 - l, kh - 1 - bottom, kw - 1 - r] });
  }
  return apply(convTransposeOp, [dy, w], { strides, pads, size: x.shape.slice(2) });
}

const convTransposeOp: OpDef = {
  name: "ConvTranspose",
  infer: ([x, w], attrs) => ({
    dtype: x.dtype,
    shape: [x.shape[0], w.shape[1], ...(attrs.size as readonly Dim[])],
  }),
  flops: ({ inputs: [x, w] }) => sizeDim([2, ...x.shape, ...w.shape.slice(1)]),
  onnx: (emit, inputs, y) => {
    const { strides, pads } = y.attrs as unknown as Required<ConvOptions>;
    const [x, w] = y.inputs;
    const extra = [0, 1].map((i) => {
      const full =
        ((x.shape[i + 2] as number) - 1) * strides[i] + (w.shape[i + 2] as number) - pads[i] - pads[i + 2];
      return (y.shape[i + 2] as number) - full;
    });
    return emit.node("ConvTranspose", inputs, { strides, pads, output_padding: extra });
  },
};

/**
 * dw = dyᵀ·im2col(x) as one matrix product over all positions of the batch. Channels come last, so that the
 * columns are gathered as whole pixels.
 */
function gradWeight(dy: Value, x: Value, w: Value, options: Required<ConvOptions>): Value {
  const [O, C, kh, kw] = w.shape as number[];
  const columns = im2col(x, kh, kw, dy.shape.slice(2) as number[], options); // [B·h·w, kh·kw·C]
  return gemm(pixels(dy), columns, { transA: true }).reshape([O, kh, kw, C]).transpose([0, 3, 1, 2]);
}

/** [B,C,H,W] → [B·H·W, C] */
function pixels(x: Value): Value {
  return x.transpose([0, 2, 3, 1]).reshape([-1, x.shape[1]]);
}

/** The input under each kernel position: [B,C,H,W] → [B·h·w, kh·kw·C]. */
function im2col(
  x: Value,
  kh: number,
  kw: number,
  [h, w]: readonly number[],
  { strides: [sy, sx], pads }: Required<ConvOptions>,
): Value {
  const unpadded = pads.every((p) => p === 0);
  if (kh * kw * sy * sx === 1 && unpadded) return pixels(x);
  const [B, C, H, W] = x.shape as number[];
  const places: number[] = [];
  for (let top = -pads[0]; top < h * sy - pads[0]; top += sy)
    for (let left = -pads[1]; left < w * sx - pads[1]; left += sx)
      for (let i = top; i < top + kh; i++)
        for (let j = left; j < left + kw; j++)
          places.push(i >= 0 && i < H && j >= 0 && j < W ? i * W + j : H * W);
  const flat = x.reshape([B, C, H * W]).transpose([0, 2, 1]);
  const rows = unpadded ? flat : flat.pad(1, 0, 1); // pixels beside the picture are the row of zeros
  return gather(rows, constant(ints([places.length], places)), 1).reshape([-1, kh * kw * C]);
}

/** x [B,C,H,W] * w [O,C/group,k,k] + b [O] → [B,O,h,w] */
export function conv(
  x: Value,
  w: Value,
  b?: Value,
  { strides = [1, 1], pads = [0, 0, 0, 0], group = 1 }: ConvOptions = {},
): Value {
  return apply(convOp, b ? [x, w, b] : [x, w], { strides, pads, group });
}
