/** @file Writing model folders in diffusers layout. */

import { join } from "node:path";
import { atomicWrite } from "../platform/index.ts";
import { castTensor, type DType, type HostTensor } from "../tensor/index.ts";
import { ClipTokenizer, type TokenizerFiles } from "../tokenizers/index.ts";
import { type TensorSource, tensorSource, writeSafetensors } from "../weights/index.ts";
import { loadWeights, readJson, tokenizerFiles } from "./folder.ts";
import type { FolderDefaults } from "./lightning.ts";

export type WeightsDType = Extract<DType, "float32" | "float16">;

export async function saveJson(path: string, value: unknown): Promise<void> {
  await atomicWrite(path, Buffer.from(`${JSON.stringify(value, undefined, 2)}\n`));
}

/** Classes whose weights diffusers looks for under `diffusion_pytorch_model`; the others are transformers'. */
const DIFFUSERS = new Set(["UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny"]);

/** A component of a model: config.json and weights. `className` is diffusers' or transformers'. */
export async function saveComponent(
  folder: string,
  className: string,
  config: object,
  tensors: Readonly<Record<string, HostTensor>>,
  dtype: WeightsDType = "float32",
): Promise<void> {
  const cast = Object.entries(tensors).map(([k, t]) => [k, tensorSource(castTensor(t, dtype))] as const);
  await writeComponent(folder, className, config, new Map(cast), dtype);
}

/** The same for tensors that are made when they are written, with metadata for their file. */
export async function writeComponent(
  folder: string,
  className: string,
  config: object,
  tensors: ReadonlyMap<string, TensorSource>,
  dtype: DType,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const diffusers = DIFFUSERS.has(className);
  await saveJson(
    join(folder, "config.json"),
    diffusers
      ? { _class_name: className, ...config }
      : { architectures: [className], model_type: modelType(className), torch_dtype: dtype, ...config },
  );
  const file = join(folder, `${diffusers ? "diffusion_pytorch_model" : "model"}.safetensors`);
  await writeSafetensors(file, tensors, { format: "pt", ...metadata });
}

function modelType(className: string): string {
  return className.startsWith("CLIPVision") ? "clip_vision_model" : "clip_text_model";
}

/** A CLIP tokenizer as transformers reads it. */
export async function saveTokenizer(folder: string, files: TokenizerFiles): Promise<void> {
  const { vocab, merges, maxLength = 77, pad = "<|endoftext|>" } = files;
  new ClipTokenizer(files); // checks the special tokens
  const special = {
    bos_token: "<|startoftext|>",
    eos_token: "<|endoftext|>",
    unk_token: "<|endoftext|>",
    pad_token: pad,
  };
  await atomicWrite(join(folder, "vocab.json"), Buffer.from(JSON.stringify(vocab)));
  await atomicWrite(join(folder, "merges.txt"), Buffer.from(`#version: 0.2\n${merges.join("\n")}\n`));
  await saveJson(join(folder, "special_tokens_map.json"), special);
  await saveJson(join(folder, "tokenizer_config.json"), {
    add_prefix_space: false,
    do_lower_case: true,
    errors: "replace",
    model_max_length: maxLength,
    tokenizer_class: "CLIPTokenizer",
    ...special,
  });
}

/** Class and config of a component that is there. */
async function described(folder: string): Promise<{ className: string; config: Record<string, unknown> }> {
  const { _class_name, architectures, ...config } = await readJson(join(folder, "config.json"));
  return { className: (_class_name as string | undefined) ?? (architectures as string[])[0], config };
}

/** Copies a component with its weights in another precision, its config with some fields changed. */
export async function copyComponent(
  from: string,
  to: string,
  dtype: WeightsDType,
  changes: object = {},
): Promise<void> {
  const { className, config } = await described(from);
  await saveComponent(to, className, { ...config, ...changes }, await loadWeights(from), dtype);
}

/** Other weights for a component that is there. */
export async function replaceWeights(
  folder: string,
  tensors: Readonly<Record<string, HostTensor>>,
  dtype: WeightsDType,
): Promise<void> {
  const { className, config } = await described(folder);
  await saveComponent(folder, className, config, tensors, dtype);
}

export async function copyTokenizer(from: string, to: string): Promise<void> {
  await saveTokenizer(to, await tokenizerFiles(from));
}

/** The scheduler of SDXL (Podell et al. 2023), as diffusers writes it. */
export const SDXL_SCHEDULER = {
  _class_name: "EulerDiscreteScheduler",
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  num_train_timesteps: 1000,
  steps_offset: 1,
  timestep_spacing: "leading",
  prediction_type: "epsilon",
  interpolation_type: "linear",
  use_karras_sigmas: false,
} as const;

/** model_index.json. `defaults` are what is used when nothing is asked; diffusers ignores them. */
export async function saveModelIndex(
  folder: string,
  defaults: FolderDefaults,
  { zeroEmptyPrompt = true }: { zeroEmptyPrompt?: boolean } = {},
): Promise<void> {
  await saveJson(join(folder, "model_index.json"), {
    _class_name: "StableDiffusionXLPipeline",
    _diffusers_version: "0.39.0",
    force_zeros_for_empty_prompt: zeroEmptyPrompt,
    add_watermarker: false,
    feature_extractor: [null, null],
    image_encoder: [null, null],
    scheduler: ["diffusers", "EulerDiscreteScheduler"],
    text_encoder: ["transformers", "CLIPTextModel"],
    text_encoder_2: ["transformers", "CLIPTextModelWithProjection"],
    tokenizer: ["transformers", "CLIPTokenizer"],
    tokenizer_2: ["transformers", "CLIPTokenizer"],
    unet: ["diffusers", "UNet2DConditionModel"],
    vae: ["diffusers", "AutoencoderKL"],
    fewstep: defaults,
  });
}
