/**
 * @file A whole model in one safetensors file, with the names that ComfyUI and generative-models use. What shapes do
 * not tell (heads, activations, tokenizers, schedules) is that of SDXL, or in the metadata, as JSON under
 * `fewstep.config`.
 */

import { z } from "zod";
import { clipTextConfig, type UNetConfig, unetConfig, type VaeConfig, vaeConfig } from "../models/index.ts";
import type { SchedulerConfig } from "../samplers/index.ts";
import { floats, type HostTensor } from "../tensor/index.ts";
import { ClipTokenizer } from "../tokenizers/index.ts";
import {
  clipTable,
  type KeyTable,
  openClipTable,
  quote,
  SafetensorsFile,
  unetTable,
  vaeTable,
} from "../weights/index.ts";
import { fullAutoencoder } from "./autoencoder.ts";
import { type BaseModel, NETWORKS, type Network, schedulerParts } from "./base.ts";
import { about, type WeightSource } from "./folder.ts";
import { expectKind, stem } from "./kinds.ts";
import { folderDefaults } from "./lightning.ts";
import { SDXL_SCHEDULER } from "./save.ts";
import { type SamplingSettings, samplingSettings } from "./settings.ts";
import { clipConfigOf, type Naming, type Shapes, unetConfigOf, vaeConfigOf } from "./shapes.ts";
import { CLIP_VOCABULARY, sdxlTokenizers } from "./vocabulary.ts";

/** Key of configs in the metadata. */
export const CONFIG = "fewstep.config";

export const PREFIXES: Readonly<Record<Network, string>> = {
  unet: "model.diffusion_model.",
  text_encoder: "conditioner.embedders.0.transformer.",
  text_encoder_2: "conditioner.embedders.1.model.",
  vae: "first_stage_model.",
};

const LABELS: Readonly<Record<Network, string>> = {
  unet: "UNet",
  text_encoder: "first text encoder",
  text_encoder_2: "second text encoder",
  vae: "VAE",
};

/** Names below the prefixes. */
export function tables(
  unet: UNetConfig,
  vae: VaeConfig,
  text2: { num_hidden_layers: number },
): Readonly<Record<Network, KeyTable>> {
  return {
    unet: unetTable(unet),
    text_encoder: clipTable(),
    text_encoder_2: openClipTable(text2),
    vae: vaeTable(vae),
  };
}

const tokenizer = z.object({
  vocab: z.record(z.string(), z.int().min(0)),
  merges: z.array(z.string()),
  maxLength: z.int().min(2).max(1024),
  pad: z.string().optional(),
});

/** Networks and scheduler have configs as in a model folder, which their own readers check. */
const schema = z.object({
  unet: z.unknown(),
  vae: z.unknown(),
  text_encoder: z.unknown(),
  text_encoder_2: z.unknown(),
  scheduler: z.unknown(),
  tokenizer,
  /** What it leaves out is that of the first. */
  tokenizer_2: tokenizer.partial(),
  force_zeros_for_empty_prompt: z.boolean(),
  defaults: z.unknown(),
});

/** How a model is built: its configs as a model folder has them, and its tokenizers. */
export type ModelConfig = z.infer<typeof schema>;

/** Tensors that no network here uses, below the prefixes. */
export const UNUSED =
  /(^|\.)(position_ids|logit_scale)$|^conditioner\.embedders\.0\..*\btext_projection\.weight$/;

/** Marks of how a UNet predicts. */
const MARKS = /^(v_pred|ztsnr)$/;

/** Tensors that no network uses beside the prefixes: what trainers leave in a file, and those marks. */
export const BESIDE =
  /^(model_ema\.|denoiser\.|first_stage_model\.loss\.|alphas_cumprod|betas$|sqrt_|log_one_minus|posterior_|conditioner\.embedders\.[01]\.logit_scale$|v_pred$|ztsnr$)/;

/** @throws one sentence when the file is not such a checkpoint, or does not hold what its configs say. */
export async function readCheckpoint(path: string): Promise<BaseModel> {
  await using file = await SafetensorsFile.open(path);
  expectKind(file, "checkpoint");
  const sampling = toldSampling(file);
  const config = await checkpointConfig(file);
  return await about(path, async () => {
    const { unet, vae, text, tokenizers, ...rest } = parsedModel(config);
    const named = tables(unet, vae, text[1]);
    const sources = {} as Record<Network, WeightSource>;
    for (const network of NETWORKS)
      sources[network] = await readNetwork(file, named[network], PREFIXES[network]);
    return {
      ...rest,
      path,
      name: stem(path),
      tokenizers: [new ClipTokenizer(tokenizers[0]), new ClipTokenizer(tokenizers[1])],
      text,
      unet,
      vae: fullAutoencoder(vae),
      sampling,
      weights: (network) => sources[network],
    };
  });
}

/** A model's config with every part checked. @throws a sentence that names the part. */
export function parsedModel(config: ModelConfig) {
  const { tokenizer: first, tokenizer_2: changes } = config;
  return {
    unet: unetConfig(config.unet),
    vae: vaeConfig(config.vae),
    text: [clipTextConfig(config.text_encoder), clipTextConfig(config.text_encoder_2)] as const,
    ...schedulerParts(config.scheduler),
    tokenizers: [first, { ...first, ...changes }] as const,
    zeroEmptyPrompt: config.force_zeros_for_empty_prompt,
    defaults: { ...folderDefaults(config.defaults), lightning: undefined }, // a file brings no others along
  };
}

/** Config of a checkpoint: that of its metadata, or one told from its tensors. */
export async function checkpointConfig(file: SafetensorsFile): Promise<ModelConfig> {
  const { entries, metadata, path } = file;
  if (Object.hasOwn(metadata, CONFIG)) return about(path, () => parseConfig(metadata[CONFIG]));
  const shapes = {} as Record<Network, Shapes>;
  for (const network of NETWORKS) shapes[network] = below(entries, PREFIXES[network]);
  const missing = NETWORKS.filter((network) => shapes[network].size === 0).map((network) => LABELS[network]);
  if (missing.length > 0)
    throw new Error(
      `${path} is a checkpoint without ${missing.join(", ")}; ` +
        `${missing.includes("UNet") ? "use one that has all parts" : "give it as the UNet of a whole model"}`,
    );
  const config = await sdxlConfig(shapes, "checkpoint").catch((cause: Error) => {
    throw new Error(
      `${path} does not say how its networks are built (no ${CONFIG} in its metadata), and is no plain SDXL: ` +
        `${cause.message}; give a model folder of the same family as the model, and this file as its UNet`,
      { cause },
    );
  });
  const scheduler = { ...(config.scheduler as object), ...markedScheduler(file.entries) };
  return { ...config, scheduler };
}

/** What ComfyUI reads off empty tensors beside a UNet: that it predicts v, and on a schedule that ends in pure noise. */
export function markedScheduler(entries: ReadonlyMap<string, unknown>): Partial<SchedulerConfig> {
  if (!entries.has("v_pred")) return {};
  return { prediction_type: "v_prediction", ...(entries.has("ztsnr") && { rescale_betas_zero_snr: true }) };
}

/** The marks of a UNet that is sampled by a schedule, with their tensors. */
export function marksOf({
  prediction_type,
  rescale_betas_zero_snr,
}: SchedulerConfig): Map<string, HostTensor> {
  if (prediction_type !== "v_prediction") return new Map();
  const marks = rescale_betas_zero_snr ? ["v_pred", "ztsnr"] : ["v_pred"];
  return new Map(marks.map((mark) => [mark, floats([0])]));
}

/** How a file with a UNet says that it wants to be sampled, in its metadata or by marks. */
export function toldSampling(file: SafetensorsFile): SamplingSettings | undefined {
  const told = samplingSettings(file.metadata, file.path);
  const { prediction_type: predictionType } = markedScheduler(file.entries);
  return predictionType ? { predictionType, ...told } : told;
}

/**
 * The config of an SDXL with tensors of these shapes.
 * @throws a sentence when they are of another kind of model, or do not tell enough.
 */
export async function sdxlConfig(
  shapes: Readonly<Record<Network, Shapes>>,
  naming: Naming,
): Promise<ModelConfig> {
  const second = clipConfigOf(shapes.text_encoder_2, naming, "gelu");
  const first = clipConfigOf(shapes.text_encoder, "diffusers", "quick_gelu");
  for (const { vocab_size } of [first, second])
    if (vocab_size !== CLIP_VOCABULARY)
      throw new Error(`a text encoder knows ${vocab_size} tokens, CLIP's vocabulary has ${CLIP_VOCABULARY}`);
  const [tokenizer, { pad }] = await sdxlTokenizers();
  return {
    unet: unetConfigOf(shapes.unet, naming, second.projection_dim),
    vae: vaeConfigOf(shapes.vae, naming),
    text_encoder: first,
    text_encoder_2: second,
    scheduler: { ...SDXL_SCHEDULER, set_alpha_to_one: false },
    tokenizer: { ...tokenizer, vocab: { ...tokenizer.vocab }, merges: [...tokenizer.merges], maxLength: 77 },
    tokenizer_2: { pad },
    force_zeros_for_empty_prompt: true,
    defaults: {},
  };
}

function parseConfig(text: string): ModelConfig {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new Error(`${CONFIG} is not valid JSON`, { cause: error });
  }
  const { data, error } = schema.safeParse(json);
  if (data) return data;
  const { path, message } = error.issues[0];
  throw new Error(`${CONFIG}${path.length > 0 ? ` at ${quote(path.join("."))}` : ""}: ${message}`);
}

/** Tensors whose names start with a prefix, without it; marks are none. */
export function below<T>(tensors: ReadonlyMap<string, T>, prefix: string): Map<string, T> {
  const isMeant = (key: string) => key.startsWith(prefix) && !UNUSED.test(key) && !MARKS.test(key);
  const found = [...tensors].filter(([key]) => isMeant(key));
  return new Map(found.map(([key, t]) => [key.slice(prefix.length), t]));
}

async function readNetwork(file: SafetensorsFile, table: KeyTable, prefix: string): Promise<WeightSource> {
  const found = await table.read(file, prefix);
  const isUsed = (key: string) => !UNUSED.test(key) && !MARKS.test(key);
  return { path: file.path, tensors: new Map([...found].filter(([key]) => isUsed(key))) };
}

/** How the UNet of a file is named, and below which prefix. */
export function unetNaming({ entries }: SafetensorsFile): { naming: Naming; prefix: string } {
  for (const prefix of [PREFIXES.unet, ""])
    if (entries.has(`${prefix}input_blocks.0.0.weight`)) return { naming: "checkpoint", prefix };
  return { naming: "diffusers", prefix: "" };
}

/** The UNet of a file under diffusers' names. Other names depend on how it is built. */
export async function unetSource(file: SafetensorsFile, config: UNetConfig): Promise<WeightSource> {
  const { naming, prefix } = unetNaming(file);
  if (naming === "checkpoint") return readNetwork(file, unetTable(config), prefix);
  return { path: file.path, tensors: new Map([...file.entries].filter(([key]) => !MARKS.test(key))) };
}
