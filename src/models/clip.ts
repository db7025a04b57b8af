/**
 * @file CLIP (Radford et al. 2021): text encoders of SDXL and the vision tower, with the parameter names of
 * transformers. B batch, T tokens, D width.
 */

import { z } from "zod";
import type { Dim, Value } from "../graph/index.ts";
import { causalMask, conv2d, embedding, layerNorm, linear, type Scope } from "../nn/index.ts";
import { attention, concat, gatherTokens, gelu, quickGelu } from "../ops/index.ts";
import { parseConfig } from "./config.ts";

const tower = {
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  hidden_act: z.enum(["quick_gelu", "gelu"]).default("quick_gelu"),
  layer_norm_eps: z.number().positive().default(1e-5),
  projection_dim: z.int().positive().default(512),
};
const textSchema = z.object({
  ...tower,
  vocab_size: z.int().positive().default(49408),
  max_position_embeddings: z.int().positive().default(77),
  bos_token_id: z.int().default(49406),
  eos_token_id: z.int().default(49407),
});
const visionSchema = z.object({
  ...tower,
  image_size: z.int().positive().default(224),
  patch_size: z.int().positive().default(32),
  num_channels: z.int().positive().default(3),
});

export type ClipTextConfig = z.infer<typeof textSchema>;
export type ClipVisionConfig = z.infer<typeof visionSchema>;

export function clipTextConfig(json: unknown): ClipTextConfig {
  return parseConfig("CLIPTextModel", textSchema, json);
}
export function clipVisionConfig(json: unknown): ClipVisionConfig {
  return parseConfig("CLIPVisionModel", visionSchema, json);
}

type TowerConfig = Pick<ClipTextConfig, keyof typeof tower>;

function encoderLayer(p: Scope, x: Value, config: TowerConfig, mask?: Value): Value {
  const D = config.hidden_size;
  const eps = config.layer_norm_eps;
  const a = p.at("self_attn");
  const std = D ** -0.5 * (2 * config.num_hidden_layers) ** -0.5;
  const inward = { out: D, init: { kind: "normal", std } } as const;
  const outward = { out: D, init: { kind: "normal", std: D ** -0.5 } } as const;
  const h = layerNorm(p.at("layer_norm1"), x, { eps });
  const [q, k, v] = ["q_proj", "k_proj", "v_proj"].map((name) => linear(a.at(name), h, inward));
  x = x.add(
    linear(a.at("out_proj"), attention(q, k, v, { heads: config.num_attention_heads, mask }), outward),
  );
  const act = config.hidden_act === "gelu" ? gelu : quickGelu;
  const mlp = p.at("mlp");
  const wide = act(
    linear(mlp.at("fc1"), layerNorm(p.at("layer_norm2"), x, { eps }), {
      out: config.intermediate_size,
      init: { kind: "normal", std: (2 * D) ** -0.5 },
    }),
  );
  return x.add(linear(mlp.at("fc2"), wide, { out: D, init: { kind: "normal", std } }));
}

/** The input and the output of every layer. */
function encoder(p: Scope, x: Value, config: TowerConfig, mask?: Value): Value[] {
  const states = [x];
  for (let i = 0; i < config.num_hidden_layers; i++)
    states.push(encoderLayer(p.at("layers").at(i), states[i], config, mask));
  return states;
}

export interface ClipTextOutput {
  /** Embeddings and the output of each layer, [B,T,D]; SDXL takes the last but one. */
  hiddenStates: Value[];
  /** After the final norm, [B,T,D]. */
  lastHiddenState: Value;
  /** The final norm at the end-of-text token, [B,D]. */
  pooled: Value;
}

/** CLIPTextModel. ids int64 [B,T]; `end` int64 [B] is the position of the first end-of-text token. */
export function clipText(
  scope: Scope,
  config: ClipTextConfig,
  { ids, end }: { ids: Value; end: Value },
): ClipTextOutput {
  const p = scope.at("text_model");
  const T = ids.shape[1] as number;
  if (T > config.max_position_embeddings)
    throw new Error(
      `CLIPTextModel: ${T} tokens, but max_position_embeddings is ${config.max_position_embeddings}`,
    );
  const e = p.at("embeddings");
  const width = config.hidden_size;
  const positions = e
    .at("position_embedding")
    .param("weight", [config.max_position_embeddings, width], { kind: "normal", std: 0.02 });
  const tokens = embedding(e.at("token_embedding"), ids, { count: config.vocab_size, width, std: 0.02 });
  const hiddenStates = encoder(p.at("encoder"), tokens.add(positions.slice(0, 0, T)), config, causalMask(T));
  const lastHiddenState = layerNorm(p.at("final_layer_norm"), hiddenStates[hiddenStates.length - 1], {
    eps: config.layer_norm_eps,
  });
  return { hiddenStates, lastHiddenState, pooled: gatherTokens(lastHiddenState, end) };
}

/** CLIPTextModelWithProjection: `textEmbeds` [B,P] is the pooled state projected. */
export function clipTextWithProjection(
  scope: Scope,
  config: ClipTextConfig,
  inputs: { ids: Value; end: Value },
): ClipTextOutput & { textEmbeds: Value } {
  const out = clipText(scope, config, inputs);
  return { ...out, textEmbeds: projection(scope.at("text_projection"), out.pooled, config) };
}

function projection(p: Scope, x: Value, config: TowerConfig): Value {
  const init = { kind: "normal", std: config.hidden_size ** -0.5 } as const;
  return linear(p, x, { out: config.projection_dim, bias: false, init });
}

/** CLIPVisionModelWithProjection. pixels [B,3,S,S], normalised → `imageEmbeds` [B,P]. */
export function clipVision(
  scope: Scope,
  config: ClipVisionConfig,
  pixels: Value,
): { hiddenStates: Value[]; pooled: Value; imageEmbeds: Value } {
  const p = scope.at("vision_model");
  const D = config.hidden_size;
  const eps = config.layer_norm_eps;
  const [B] = pixels.shape as [Dim];
  const e = p.at("embeddings");
  const side = config.image_size / config.patch_size;
  const patches = conv2d(e.at("patch_embedding"), pixels, {
    out: D,
    kernel: config.patch_size,
    stride: config.patch_size,
    padding: 0,
    bias: false,
    init: { kind: "normal", std: 0.02 },
  })
    .reshape([B, D, side * side])
    .transpose([0, 2, 1]); // [B,n,D]
  const cls = e.param("class_embedding", [D], { kind: "normal", std: D ** -0.5 }).reshape([1, 1, D]);
  const positions = e
    .at("position_embedding")
    .param("weight", [side * side + 1, D], { kind: "normal", std: 0.02 });
  const x = concat([cls.expand([B, 1, D]), patches], 1).add(positions); // [B,n+1,D]
  const hiddenStates = encoder(p.at("encoder"), layerNorm(p.at("pre_layrnorm"), x, { eps }), config);
  const first = hiddenStates[hiddenStates.length - 1].slice(1, 0, 1).squeeze(1); // [B,D]
  const pooled = layerNorm(p.at("post_layernorm"), first, { eps });
  return { hiddenStates, pooled, imageEmbeds: projection(scope.at("visual_projection"), pooled, config) };
}
