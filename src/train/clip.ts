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

/**
 * Inputs `pixels` [B,3,S,S], `ids` and `ids_2` int64 [B,T], `end` int64 [B] and `diagonal`, the identity [B,B].
 * Keys are prefixed with text_encoder, text_encoder_2 and image_encoder; the projection of the first encoder
 * and the temperatures serve training only.
 */
export function clipLoss(
  configs: ClipConfigs,
  { batch }: { batch: number },
): { loss: Value; metrics: Record<string, Value> } {
  const { textEncoder, textEncoder2, vision } = configs;
  const root = rootScope();
  const T = textEncoder.max_position_embeddings;
  const end = input("end", "int64", [batch]);
  const pixels = input("pixels", "float32", [batch, 3, vision.image_size, vision.image_size]);
  const diagonal = input("diagonal", "float32", [batch, batch]);
  const image = normalized(clipVision(root.at("image_encoder"), vision, pixels).imageEmbeds); // [B,P]
  const first = clipText(root.at("text_encoder"), textEncoder, {
    ids: input("ids", "int64", [batch, T]),
    end,
  });
  const aid = root.at("training");
  const projected = linear(aid.at("text_projection"), first.pooled, {
    out: vision.projection_dim,
    bias: false,
  });
  const second = clipTextWithProjection(root.at("text_encoder_2"), textEncoder2, {
    ids: input("ids_2", "int64", [batch, T]),
    end,
  });
  const losses = [projected, second.textEmbeds].map((text, i) => {
    const logits = image
      .matmul(normalized(text).transpose([1, 0]))
      .mul(temperature(aid, `logit_scale_${i + 1}`));
    const hit = logits
      .mul(diagonal)
      .sum([1])
      .sub(logits.max([1]))
      .add(1e-6);
    const accuracy = hit.maximum(0).minimum(1e-6).mean().mul(1e6);
    return { loss: symmetricCrossEntropy(logits, diagonal), accuracy };
  });
  return {
    loss: losses[0].loss.add(losses[1].loss).mul(0.5),
    metrics: { accuracy_1: losses[0].accuracy, accuracy_2: losses[1].accuracy },
  };
}
