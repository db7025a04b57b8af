/**
 * @file Between model folders in diffusers layout and single files, without loss: tensors keep their bits and their
 * precision, and are copied one after the other. What one layout has and the other has no place for, such as moving
 * averages beside the weights, is left out.
 */

import { existsSync, renameSync, rmSync, statSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { isDeepStrictEqual } from "node:util";
import { atomically } from "../platform/index.ts";
import { schedulerConfig } from "../samplers/index.ts";
import { castTensor, type DType, floats, type HostTensor } from "../tensor/index.ts";
import type { TokenizerFiles } from "../tokenizers/index.ts";
import {
  type KeyTable,
  matchKeys,
  readSource,
  SafetensorsFile,
  type TensorEntry,
  type TensorSource,
  tensorSource,
  unetTable,
  vaeTable,
  type WeightKind,
  writeSafetensors,
} from "../weights/index.ts";
import { renewed } from "./autoencoder.ts";
import { NETWORKS, type Network, readFolder } from "./base.ts";
import {
  below,
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
  unetNaming,
} from "./checkpoint.ts";
import { about, readJson, sourceOf, tokenizerFiles, weightsFiles } from "./folder.ts";
import { expectKind } from "./kinds.ts";
import { networkParameters } from "./parameters.ts";
import { saveJson, saveModelIndex, saveTokenizer, type WeightsDType, writeComponent } from "./save.ts";
import { type SamplingSettings, samplingMetadata, samplingSettings } from "./settings.ts";
import { type Naming, unetLayoutOf, vaeConfigOf } from "./shapes.ts";
import { sdxlTokenizers } from "./vocabulary.ts";

const CLASSES: Readonly<Record<Network, string>> = {
  text_encoder: "CLIPTextModel",
  text_encoder_2: "CLIPTextModelWithProjection",
  unet: "UNet2DConditionModel",
  vae: "AutoencoderKL",
};

/** A network that can be converted alone. */
export type Part = Extract<Network, "unet" | "vae">;

export interface CheckpointOptions {
  /** How the UNet wants to be sampled, where it is not the model's own. */
  settings?: SamplingSettings;
  /** Default "float32". */
  dtype?: WeightsDType;
}

type Tensors = ReadonlyMap<string, HostTensor | TensorEntry>;

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
  const own = unet && new Map(Object.entries(unet));
  await writeCheckpoint(path, folder, { unet: own, settings, dtype });
}

/** @param dtype of the tensors; undefined: as they are. @param settings undefined: those of the folder's UNet. */
async function writeCheckpoint(
  path: string,
  folder: string,
  { unet, settings, dtype }: { unet?: Tensors; settings?: SamplingSettings; dtype?: WeightsDType } = {},
): Promise<void> {
  const config = await folderConfig(folder);
  const model = parsedModel(config);
  const named = tables(model.unet, model.vae, model.text[1]);
  const tensors = {} as Record<Network, Tensors>;
  for (const network of NETWORKS) {
    const stored = network === "unet" && unet ? unet : await storedTensors(folder, network);
    tensors[network] = new Map([...stored].filter(([key]) => !UNUSED.test(key)));
  }
  const out = new Map<string, TensorSource>();
  for (const network of ["unet", "text_encoder", "text_encoder_2", "vae"] as const) {
    const cast = [...tensors[network]].map(([key, t]) => [key, castSource(t, dtype)] as const);
    for (const [key, t] of named[network].write(new Map(cast), PREFIXES[network])) out.set(key, t);
  }
  // OpenCLIP's logit scale, ln 100, which readers expect and SDXL does not use.
  const scale = tensorSource(floats([], [Math.log(100)]));
  const like = dtype ?? tensors.text_encoder_2.get("text_projection.weight")?.dtype ?? "float32";
  out.set(`${PREFIXES.text_encoder_2}logit_scale`, castSource(await readSource(scale), like));
  const told = settings ?? (await unetSettings(folder)) ?? {};
  const { prediction_type } = model.scheduler;
  const marks = marksOf({ ...model.scheduler, prediction_type: told.predictionType ?? prediction_type });
  for (const [key, t] of sourcesOf(marks)) out.set(key, t);
  const plain = await sdxlConfig(tensors, "diffusers").catch(() => undefined);
  const marked = plain && {
    ...plain,
    scheduler: { ...(plain.scheduler as object), ...markedScheduler(marks) },
  };
  const isPlain = marked && isDeepStrictEqual(comparable(marked), comparable(config));
  await writeSafetensors(path, out, {
    format: "pt",
    ...samplingMetadata(told),
    ...(isPlain ? {} : { [CONFIG]: JSON.stringify(config) }),
  });
}

/** A model's config without what changes nothing here. */
function comparable(config: ModelConfig): unknown {
  const { text, tokenizers, ...rest } = parsedModel(config);
  const [first, second] = text.map(({ bos_token_id: _, eos_token_id: __, ...fields }) => fields);
  return { ...rest, tokenizers, text: [{ ...first, projection_dim: 0 }, second] };
}

async function storedTensors(folder: string, network: Network): Promise<Tensors> {
  const { tensors } = await sourceOf(await weightsFiles(join(folder, network)));
  return network === "vae" ? renewed(tensors) : tensors;
}

async function unetSettings(folder: string): Promise<SamplingSettings | undefined> {
  const [path] = await weightsFiles(join(folder, "unet"));
  await using file = await SafetensorsFile.open(path);
  return samplingSettings(file.metadata, path);
}

function castSource(t: HostTensor | TensorEntry, dtype: DType = t.dtype): TensorSource {
  const stored = tensorSource(t);
  if (dtype === t.dtype) return stored;
  return {
    dtype,
    shape: t.shape,
    bytes: async function* () {
      yield tensorSource(castTensor(await readSource(stored), dtype as WeightsDType)).bytes() as Uint8Array;
    },
  };
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

/** Writes a single-file checkpoint as a model folder. */
async function writeFolder(folder: string, path: string): Promise<void> {
  await using file = await SafetensorsFile.open(path);
  expectKind(file, "checkpoint");
  const config = await checkpointConfig(file);
  const settings = samplingSettings(file.metadata, path) ?? {};
  const model = await about(path, () => parsedModel(config));
  const named = tables(model.unet, model.vae, model.text[1]);
  const expected = networkParameters(model);
  for (const network of NETWORKS) {
    const stored = await named[network].read(file, PREFIXES[network]);
    const kept = new Map([...stored].filter(([key]) => !UNUSED.test(key)));
    matchKeys(path, expected[network], Object.fromEntries(kept));
    const sources = [...kept].map(([key, t]) => [key, tensorSource(t)] as const);
    const [{ dtype }] = kept.values();
    const metadata = network === "unet" ? samplingMetadata(settings) : {};
    const json = config[network] as object;
    await writeComponent(join(folder, network), CLASSES[network], json, new Map(sources), dtype, metadata);
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

/** Tensors of one network, how they are named, and what comes before their names. */
interface Found {
  naming: Naming;
  tensors: ReadonlyMap<string, TensorEntry>;
  table: KeyTable;
  metadata: Readonly<Record<string, string>>;
  /** Of a UNet. */
  marks: Tensors;
}

/** A network of a file or folder. @param part undefined: what the file holds. */
async function findPart(from: string, part?: Part): Promise<Found & { part: Part }> {
  if (statSync(from).isDirectory()) {
    if (!part) throw new Error(`${from} is a folder; name unet or vae`);
    const tensors = (await storedTensors(from, part)) as ReadonlyMap<string, TensorEntry>;
    const settings = part === "unet" ? await unetSettings(from) : undefined;
    const metadata = samplingMetadata(settings ?? {});
    const marks = part === "unet" ? marksOf((await readFolder(from)).scheduler) : new Map();
    return {
      part,
      naming: "diffusers",
      tensors,
      table: tableOf(part, tensors, "diffusers"),
      metadata,
      marks,
    };
  }
  await using file = await SafetensorsFile.open(from);
  const kinds: WeightKind[] = part ? [part, "checkpoint"] : ["unet", "vae"];
  const kind = expectKind(file, ...kinds);
  const what = part ?? (kind === "vae" ? "vae" : "unet");
  const { metadata } = file;
  if (what === "unet") {
    const { naming, prefix } = unetNaming(file);
    const tensors = below(file.entries, prefix);
    const isWhole = kind === "checkpoint" && Object.hasOwn(metadata, CONFIG);
    const told = isWhole ? (await checkpointConfig(file)).scheduler : markedScheduler(file.entries);
    const marks = marksOf(schedulerConfig(told));
    return { part: what, naming, tensors, table: tableOf(what, tensors, naming), metadata, marks };
  }
  const inside = below(file.entries, PREFIXES.vae);
  const tensors = inside.size > 0 ? inside : file.entries;
  const naming = tensors.has("decoder.up.0.block.0.conv1.weight") ? "checkpoint" : "diffusers";
  const current = naming === "diffusers" ? renewed(tensors) : tensors;
  const table = tableOf(what, current, naming);
  return { part: what, naming, tensors: current, table, metadata: {}, marks: new Map() };
}

function tableOf(part: Part, tensors: ReadonlyMap<string, TensorEntry>, naming: Naming): KeyTable {
  return part === "unet" ? unetTable(unetLayoutOf(tensors, naming)) : vaeTable(vaeConfigOf(tensors, naming));
}

/** Writes one network as a file of its own, with the names that it has not. */
async function writePart(to: string, from: string, part?: Part): Promise<void> {
  const found = await findPart(from, part);
  const { naming, table, tensors } = found;
  const marks = sourcesOf(found.marks);
  const kept = Object.entries(found.metadata).filter(([key]) => key.startsWith("fewstep.") && key !== CONFIG);
  const metadata = { format: "pt", ...Object.fromEntries(kept) };
  if (naming === "checkpoint") {
    const out = await table.read({ entries: tensors });
    const left = [...out.keys()].filter((key) => table.toTheirs(key) === undefined);
    if (left.length > 0) matchKeys(from, {}, Object.fromEntries(left.map((key) => [key, { shape: [] }])));
    await writeSafetensors(to, new Map([...sourcesOf(out), ...marks]), metadata);
    return;
  }
  // ComfyUI and others look for a UNet below the prefix of checkpoints, and for a VAE without one.
  const prefix = found.part === "unet" ? PREFIXES.unet : "";
  const named = await about(from, () => table.write(sourcesOf(tensors), prefix));
  await writeSafetensors(to, new Map([...named, ...marks]), metadata);
}

function sourcesOf(tensors: Tensors): Map<string, TensorSource> {
  return new Map([...tensors].map(([key, t]) => [key, tensorSource(t)] as const));
}

const isFile = (path: string): boolean => path.endsWith(".safetensors");

/**
 * A model folder becomes a single file, a single file a folder, and a network on its own gets the other naming. It
 * appears whole or not at all.
 * @param from a model folder or a .safetensors file. @param to a .safetensors file, or a folder for a whole model.
 * @param part takes this network alone, into a file.
 * @throws one sentence when this is none of these cases, or `to` is there and not to be replaced.
 */
export async function convertModel(
  from: string,
  to: string,
  { part, force = false }: { part?: Part; force?: boolean } = {},
): Promise<void> {
  const folder = statSync(from).isDirectory();
  const whole = part === undefined && (folder || !isFile(to));
  if (whole && folder !== isFile(to))
    throw new Error(`${from} is a model folder already; give a name that ends in .safetensors`);
  if (!whole && !isFile(to))
    throw new Error(`${to}: one network becomes a file; end its name in .safetensors`);
  await checkTarget(to, force);
  if (whole && folder) return writeCheckpoint(to, from);
  if (!whole) return writePart(to, from, part);
  const aside = `${to}.${process.pid}.old`;
  await atomically(to, async (temporary) => {
    await writeFolder(temporary, from);
    if (existsSync(to)) renameSync(to, aside);
  });
  rmSync(aside, { recursive: true, force: true });
}

/** @throws when something is there that may not be replaced. */
async function checkTarget(to: string, force: boolean): Promise<void> {
  const found = statSync(to, { throwIfNoEntry: false });
  if (!found) return;
  const what = found.isDirectory() ? "folder" : "file";
  if (isFile(to) !== found.isFile()) throw new Error(`${to} is a ${what}; give another name`);
  const names = found.isDirectory() ? await readdir(to) : [];
  if (found.isDirectory() && names.length === 0) return;
  if (!force) throw new Error(`${to}: a ${what} of that name is there; --force replaces it`);
  if (found.isDirectory() && !names.includes("model_index.json"))
    throw new Error(`${to} is no model folder, so it is not replaced; give another name`);
}
