/**
 * @file Whole models between folders in diffusers layout and single files, without loss: tensors keep their bits and
 * their precision, and are copied one after the other. What one layout has and the other has no place for, such as
 * moving averages beside the weights, is left out.
 */

import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { castTensor, type DType, floats, type HostTensor } from "../tensor/index.ts";
import type { TokenizerFiles } from "../tokenizers/index.ts";
import {
  matchKeys,
  readSource,
  SafetensorsFile,
  type TensorEntry,
  type TensorSource,
  tensorSource,
  writeSafetensors,
} from "../weights/index.ts";
import { renewed } from "./autoencoder.ts";
import { NETWORKS, type Network, readFolder } from "./base.ts";
import {
  CONFIG,
  checkpointConfig,
  type ModelConfig,
  markedScheduler,
  marksOf,
  PREFIXES,
  parsedModel,
  sdxlConfig,
  tables,
  UNUSED,
} from "./checkpoint.ts";
import { about, readJson, sourceOf, tokenizerFiles, weightsFiles } from "./folder.ts";
import { expectKind } from "./kinds.ts";
import { networkParameters } from "./parameters.ts";
import { saveJson, saveModelIndex, saveTokenizer, type WeightsDType, writeComponent } from "./save.ts";
import { type SamplingSettings, samplingMetadata, samplingSettings } from "./settings.ts";
import { sdxlTokenizers } from "./vocabulary.ts";

const CLASSES: Readonly<Record<Network, string>> = {
  text_encoder: "CLIPTextModel",
  text_encoder_2: "CLIPTextModelWithProjection",
  unet: "UNet2DConditionModel",
  vae: "AutoencoderKL",
};

export interface CheckpointOptions {
  /** How the UNet wants to be sampled, where it is not the model's own. */
  settings?: SamplingSettings;
  /** Default "float32". */
  dtype?: WeightsDType;
}

/** Tensors under diffusers' names. */
export type Tensors = ReadonlyMap<string, TensorSource>;

/** A model as either layout has it. */
export interface WholeModel {
  config: ModelConfig;
  tensors: Readonly<Record<Network, Tensors>>;
  /** Those of its UNet. */
  settings: SamplingSettings;
}

/** @param from a model folder, or a single-file checkpoint. @throws one sentence when it is neither. */
export async function readWhole(from: string): Promise<WholeModel> {
  return statSync(from).isDirectory() ? wholeFolder(from) : wholeFile(from);
}

async function wholeFolder(folder: string): Promise<WholeModel> {
  const config = await folderConfig(folder);
  const settings = (await unetSettings(folder)) ?? {};
  return { config, settings, tensors: await allTensors((network) => storedTensors(folder, network)) };
}

async function wholeFile(path: string): Promise<WholeModel> {
  await using file = await SafetensorsFile.open(path);
  expectKind(file, "checkpoint");
  const config = await checkpointConfig(file);
  const settings = samplingSettings(file.metadata, path) ?? {};
  const model = await about(path, () => parsedModel(config));
  const named = tables(model.unet, model.vae, model.text[1]);
  const expected = networkParameters(model);
  const tensors = await allTensors((network) => named[network].read(file, PREFIXES[network]));
  for (const network of NETWORKS) matchKeys(path, expected[network], Object.fromEntries(tensors[network]));
  return { config, settings, tensors };
}

/** Those of all networks that are used. */
async function allTensors(
  read: (network: Network) => Promise<ReadonlyMap<string, HostTensor | TensorEntry>>,
): Promise<WholeModel["tensors"]> {
  const all = {} as Record<Network, Tensors>;
  for (const network of NETWORKS) {
    const used = [...(await read(network))].filter(([key]) => !UNUSED.test(key));
    all[network] = sourcesOf(new Map(used));
  }
  return all;
}

/** The tensors of a network in a model folder. */
export async function storedTensors(
  folder: string,
  network: Network,
): Promise<ReadonlyMap<string, HostTensor | TensorEntry>> {
  const { tensors } = await sourceOf(await weightsFiles(join(folder, network)));
  return network === "vae" ? renewed(tensors) : tensors;
}

/** What the file of a folder's UNet says of sampling. */
export async function unetSettings(folder: string): Promise<SamplingSettings | undefined> {
  const [path] = await weightsFiles(join(folder, "unet"));
  await using file = await SafetensorsFile.open(path);
  return samplingSettings(file.metadata, path);
}

export function sourcesOf(tensors: ReadonlyMap<string, HostTensor | TensorEntry>): Map<string, TensorSource> {
  return new Map([...tensors].map(([key, t]) => [key, tensorSource(t)] as const));
}

/** The config of a model folder as a checkpoint carries it. */
async function folderConfig(folder: string): Promise<ModelConfig> {
  const base = await readFolder(folder);
  const json = (part: string) => readJson(join(folder, part, "config.json"));
  const own = await sdxlTokenizers();
  const files = (i: 0 | 1) => {
    const path = join(folder, ["tokenizer", "tokenizer_2"][i]);
    return existsSync(join(path, "vocab.json")) ? tokenizerFiles(path) : own[i];
  };
  const [first, second] = [tokenizerJson(await files(0)), tokenizerJson(await files(1))];
  const { steps, guidance } = base.defaults;
  return {
    unet: await json("unet"),
    vae: await json("vae"),
    text_encoder: await json("text_encoder"),
    text_encoder_2: await json("text_encoder_2"),
    scheduler: await readJson(join(folder, "scheduler", "scheduler_config.json")),
    tokenizer: first,
    tokenizer_2: differences(first, second),
    force_zeros_for_empty_prompt: base.zeroEmptyPrompt,
    defaults: { steps, guidance },
  };
}

function tokenizerJson({ vocab, merges, maxLength = 77, pad }: TokenizerFiles): ModelConfig["tokenizer"] {
  return { vocab: { ...vocab }, merges: [...merges], maxLength, pad };
}

/** The fields of `b` that are not those of `a`. */
function differences<T extends object>(a: T, b: T): Partial<T> {
  const entries = Object.entries(b).filter(([key, value]) => !isDeepStrictEqual(value, a[key as keyof T]));
  return Object.fromEntries(entries) as Partial<T>;
}

/**
 * Writes a model folder as one file.
 * @param unet tensors with diffusers' names; the folder's own when left out.
 */
export async function saveCheckpoint(
  path: string,
  folder: string,
  unet?: Readonly<Record<string, HostTensor>>,
  { settings = {}, dtype = "float32" }: CheckpointOptions = {},
): Promise<void> {
  const { config, tensors } = await readWhole(folder);
  const own = unet ? { unet: sourcesOf(new Map(Object.entries(unet))) } : {};
  await writeCheckpoint(path, { config, tensors: { ...tensors, ...own }, settings }, dtype);
}

/** @param dtype of the tensors; undefined: as they are. */
export async function writeCheckpoint(
  path: string,
  { config, tensors, settings }: WholeModel,
  dtype?: WeightsDType,
): Promise<void> {
  const model = parsedModel(config);
  const named = tables(model.unet, model.vae, model.text[1]);
  const out = new Map<string, TensorSource>();
  for (const network of ["unet", "text_encoder", "text_encoder_2", "vae"] as const) {
    const cast = [...tensors[network]].map(([key, t]) => [key, castSource(t, dtype)] as const);
    for (const [key, t] of named[network].write(new Map(cast), PREFIXES[network])) out.set(key, t);
  }
  // OpenCLIP's logit scale, ln 100, which readers expect and SDXL does not use.
  const scale = tensorSource(floats([], [Math.log(100)]));
  const like = dtype ?? tensors.text_encoder_2.get("text_projection.weight")?.dtype ?? "float32";
  out.set(`${PREFIXES.text_encoder_2}logit_scale`, castSource(scale, like));
  const { prediction_type } = model.scheduler;
  const marks = marksOf({ ...model.scheduler, prediction_type: settings.predictionType ?? prediction_type });
  for (const [key, t] of sourcesOf(marks)) out.set(key, t);
  const plain = await sdxlConfig(tensors, "diffusers").catch(() => undefined);
  const marked = plain && {
    ...plain,
    scheduler: { ...(plain.scheduler as object), ...markedScheduler(marks) },
  };
  const isPlain = marked && isDeepStrictEqual(comparable(marked), comparable(config));
  await writeSafetensors(path, out, {
    format: "pt",
    ...samplingMetadata(settings),
    ...(isPlain ? {} : { [CONFIG]: JSON.stringify(config) }),
  });
}

/** A model's config without what changes nothing here. */
function comparable(config: ModelConfig): unknown {
  const { text, tokenizers, ...rest } = parsedModel(config);
  const [first, second] = text.map(({ bos_token_id: _, eos_token_id: __, ...fields }) => fields);
  return { ...rest, tokenizers, text: [{ ...first, projection_dim: 0 }, second] };
}

function castSource(t: TensorSource, dtype: DType = t.dtype): TensorSource {
  if (dtype === t.dtype) return t;
  return {
    dtype,
    shape: t.shape,
    bytes: async function* () {
      yield tensorSource(castTensor(await readSource(t), dtype)).bytes() as Uint8Array;
    },
  };
}

/** Writes a model as a folder in diffusers layout. */
export async function writeFolder(folder: string, { config, tensors, settings }: WholeModel): Promise<void> {
  const model = parsedModel(config);
  for (const network of NETWORKS) {
    const [{ dtype }] = tensors[network].values();
    const metadata = network === "unet" ? samplingMetadata(settings) : {};
    const json = config[network] as object;
    await writeComponent(join(folder, network), CLASSES[network], json, tensors[network], dtype, metadata);
  }
  await saveTokenizer(join(folder, "tokenizer"), model.tokenizers[0]);
  await saveTokenizer(join(folder, "tokenizer_2"), model.tokenizers[1]);
  const { spacing, predictionType, steps, guidance } = settings;
  await saveJson(join(folder, "scheduler", "scheduler_config.json"), {
    ...(config.scheduler as object),
    ...(spacing ? { timestep_spacing: spacing } : {}),
    ...(predictionType ? { prediction_type: predictionType } : {}),
  });
  const { defaults, zeroEmptyPrompt } = model;
  const used = { steps: steps ?? defaults.steps, guidance: guidance ?? defaults.guidance };
  await saveModelIndex(folder, used, { zeroEmptyPrompt });
}
