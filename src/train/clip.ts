/**
 * @file Contrastive training of both text encoders against one vision tower (Radford et al. 2021, Figure 3).
 * B pairs, P projection width.
 */

import { input, type Value } from "../graph/index.ts";
import {
  type ClipTextConfig,
  type ClipVisionConfig,
  clipText,
  clipTextWithProjection,
  clipVision,
} from "../models/index.ts";
import { linear, rootScope, type Scope } from "../nn/index.ts";
import { logSoftmax } from "../ops/index.ts";

export interface ClipConfigs {
  textEncoder: ClipTextConfig;
  textEncoder2: ClipTextConfig;
  vision: ClipVisionConfig;
}

/** Unit length along the last axis. */
export function normalized(x: Value): Value {
  return x.div(x.pow(2).sum([-1], true).add(1e-12).sqrt());
}

/** Mean cross-entropy of finding each row's partner in both directions; logits [B,B]. */
function symmetricCrossEntropy(logits: Value, diagonal: Value): Value {
  const B = logits.shape[0] as number;
  const both = logSoftmax(logits, 1).add(logSoftmax(logits, 0));
  return both
    .mul(diagonal)
    .sum()
    .div(-2 * B);
}

/** exp(s), at most 100, with s learned from ln(1/0.07). */
function temperature(p: Scope, name: string): Value {
  return p
    .param(name, [1], { kind: "constant", value: Math.log(1 / 0.07) })
    .exp()
    .minimum(100)
    .reshape([]);
}

export interface ClipLossOptions {
  batch: number;
  /**
   * Weight of finding a caption's picture among the batch by another caption of it, in each text encoder (as SimCSE,
   * Gao et al. 2021, with two captions for two dropouts). Pictures alone tell few words apart: colours and outlines.
   */
  agreement: number;
}

/**
 * Inputs `pixels` [B,3,S,S], `ids` and `ids_2` int64 [B,T], `end` int64 [B] and `diagonal`, the identity [B,B]; with
 * `agreement` also other captions of the pictures, `other_ids`, `other_ids_2` and `other_end`.
 * Keys are prefixed with text_encoder, text_encoder_2 and image_encoder; the projection of the first encoder
 * and the temperatures serve training only.
 */
export function clipLoss(
  configs: ClipConfigs,
  { batch, agreement }: ClipLossOptions,
): { loss: Value; metrics: Record<string, Value> } {
  const { textEncoder, textEncoder2, vision } = configs;
  const root = rootScope();
  const aid = root.at("training");
  const T = textEncoder.max_position_embeddings;
  /** Unit embeddings [B,P] of the captions whose inputs have this prefix, by both encoders. */
  const embed = (prefix: string): Value[] => {
    const ids = (name: string) => input(`${prefix}${name}`, "int64", [batch, T]);
    const end = input(`${prefix}end`, "int64", [batch]);
    const { pooled } = clipText(root.at("text_encoder"), textEncoder, { ids: ids("ids"), end });
    const out = vision.projection_dim;
    const first = linear(aid.at("text_projection"), pooled, { out, bias: false });
    const second = clipTextWithProjection(root.at("text_encoder_2"), textEncoder2, {
      ids: ids("ids_2"),
      end,
    });
    return [first, second.textEmbeds].map(normalized);
  };
  const pixels = input("pixels", "float32", [batch, 3, vision.image_size, vision.image_size]);
  const diagonal = input("diagonal", "float32", [batch, batch]);
  const match = (a: Value, b: Value, scale: string) => {
    const logits = a.matmul(b.transpose([1, 0])).mul(temperature(aid, scale));
    const hit = logits
      .mul(diagonal)
      .sum([1])
      .sub(logits.max([1]))
      .add(1e-6);
    const accuracy = hit.maximum(0).minimum(1e-6).mean().mul(1e6);
    return { loss: symmetricCrossEntropy(logits, diagonal), accuracy };
  };
  const image = normalized(clipVision(root.at("image_encoder"), vision, pixels).imageEmbeds); // [B,P]
  const texts = embed("");
  const [first, second] = texts.map((text, i) => match(image, text, `logit_scale_${i + 1}`));
  const loss = first.loss.add(second.loss).mul(0.5);
  const metrics = { accuracy_1: first.accuracy, accuracy_2: second.accuracy };
  if (agreement === 0) return { loss, metrics };
  const others = embed("other_");
  const [one, two] = texts.map((text, i) => match(text, others[i], `agreement_scale_${i + 1}`));
  return {
    loss: loss.add(one.loss.add(two.loss).mul(0.5 * agreement)),
    metrics: { ...metrics, agreement_1: one.accuracy, agreement_2: two.accuracy },
  };
}
