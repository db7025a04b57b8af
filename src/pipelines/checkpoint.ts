/**
 * @file A whole model in one safetensors file, with the names that ComfyUI and generative-models use. Sizes can
 * be read off the tensors, but not heads, activations, tokenizers or schedules: these are in the metadata, as JSON
 * under `fewstep.config`.
 */

import { basename, join } from "node:path";
import { z } from "zod";
import { clipTextConfig, type UNetConfig, unetConfig, type VaeConfig, vaeConfig } from "../models/index.ts";
import { schedulerConfig } from "../samplers/index.ts";
import { castTensor, floats, type HostTensor } from "../tensor/index.ts";
import { ClipTokenizer, type TokenizerFiles } from "../tokenizers/index.ts";
import {
  clipTable,
  type KeyTable,
  kindText,
  openClipTable,
  quote,
  SafetensorsFile,
  type TensorSource,
  tensorSource,
  unetTable,
  vaeTable,
  type WeightKind,
  weightKind,
  writeSafetensors,
} from "../weights/index.ts";
import { type BaseModel, type Network, readFolder } from "./base.ts";
import { about, loadWeights, readJson, tokenizerFiles, type WeightSource } from "./folder.ts";
import { folderDefaults } from "./lightning.ts";
import type { WeightsDType } from "./save.ts";
import { type SamplingSettings, samplingMetadata, samplingSettings } from "./settings.ts";

const CONFIG = "fewstep.config";

const PREFIXES: Readonly<Record<Network, string>> = {
  unet: "model.diffusion_model.",
  text_encoder: "conditioner.embedders.0.transformer.",
  text_encoder_2: "conditioner.embedders.1.model.",
  vae: "first_stage_model.",
};

/** Names below the prefixes. */
function tables(
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

export interface CheckpointOptions {
  /** How the UNet wants to be sampled, where it is not the model's own. */
  settings?: SamplingSettings;
  /** Default "float32". */
  dtype?: WeightsDType;
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
  const base = await readFolder(folder);
  const json = (part: string) => readJson(join(folder, part, "config.json"));
  const [first, second] = [
    await tokenizerFiles(join(folder, "tokenizer")),
    await tokenizerFiles(join(folder, "tokenizer_2")),
  ];
  const { steps, guidance } = base.defaults;
  const config: z.input<typeof schema> = {
    unet: await json("unet"),
    vae: await json("vae"),
    text_encoder: await json("text_encoder"),
    text_encoder_2: await json("text_encoder_2"),
    scheduler: await readJson(join(folder, "scheduler", "scheduler_config.json")),
    tokenizer: tokenizerJson(first),
    tokenizer_2: differences(tokenizerJson(first), tokenizerJson(second)),
    force_zeros_for_empty_prompt: base.zeroEmptyPrompt,
    defaults: { steps, guidance },
  };
  const tensors = new Map<string, TensorSource>();
  const named = tables(base.unet, base.vae, base.text[1]);
  for (const network of Object.keys(PREFIXES) as Network[]) {
    const own = network === "unet" && unet ? unet : await loadWeights(join(folder, network));
    const kept = Object.entries(own).filter(([key]) => !UNUSED.test(key));
    const cast = new Map(kept.map(([key, t]) => [key, castTensor(t, dtype)] as const));
    for (const [key, t] of named[network].write(cast, PREFIXES[network])) tensors.set(key, t);
  }
  // OpenCLIP's logit scale, ln 100, which readers expect and SDXL does not use.
  const scale = castTensor(floats([], [Math.log(100)]), dtype);
  tensors.set(`${PREFIXES.text_encoder_2}logit_scale`, tensorSource(scale));
  await writeSafetensors(path, tensors, {
    format: "pt",
    ...samplingMetadata(settings),
    [CONFIG]: JSON.stringify(config),
  });
}

function tokenizerJson({ vocab, merges, maxLength = 77, pad }: TokenizerFiles): z.infer<typeof tokenizer> {
  return { vocab: { ...vocab }, merges: [...merges], maxLength, pad };
}

/** The fields of `b` that are not those of `a`. */
function differences<T extends object>(a: T, b: T): Partial<T> {
  const text = (value: unknown) => JSON.stringify(value);
  const entries = Object.entries(b).filter(([key, value]) => text(value) !== text(a[key as keyof T]));
  return Object.fromEntries(entries) as Partial<T>;
}

/** Tensors that no network here uses. */
const UNUSED = /(^|\.)(position_ids|logit_scale)$/;

/** @throws one sentence when the file is not such a checkpoint, or does not hold what its configs say. */
export async function readCheckpoint(path: string): Promise<BaseModel> {
  await using file = await SafetensorsFile.open(path);
  expectKind(file, "checkpoint");
  if (!Object.hasOwn(file.metadata, CONFIG))
    throw new Error(
      `${path} does not say how its networks are built (no ${CONFIG} in its metadata); ` +
        "give a model folder of the same family as the model, and this file as its UNet",
    );
  const config = await about(path, () => parseConfig(file.metadata[CONFIG]));
  const { force_zeros_for_empty_prompt: zeroEmptyPrompt, tokenizer: first, tokenizer_2: changes } = config;
  const sampling = samplingSettings(file.metadata, path);
  return await about(path, async () => {
    const unet = unetConfig(config.unet);
    const vae = vaeConfig(config.vae);
    const text = [clipTextConfig(config.text_encoder), clipTextConfig(config.text_encoder_2)] as const;
    const named = tables(unet, vae, text[1]);
    const sources = {} as Record<Network, WeightSource>;
    for (const network of Object.keys(PREFIXES) as Network[])
      sources[network] = await readNetwork(file, network, named[network]);
    return {
      path,
      name: stem(path),
      tokenizers: [new ClipTokenizer(first), new ClipTokenizer({ ...first, ...changes })],
      text,
      unet,
      vae,
      scheduler: schedulerConfig(config.scheduler),
      zeroEmptyPrompt,
      defaults: { ...folderDefaults(config.defaults), lightning: undefined }, // a file brings no others along
      sampling,
      weights: (network) => sources[network],
    };
  });
}

function parseConfig(text: string): z.infer<typeof schema> {
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

async function readNetwork(file: SafetensorsFile, network: Network, table: KeyTable): Promise<WeightSource> {
  const found = await table.read(file, PREFIXES[network]);
  return { path: file.path, tensors: new Map([...found].filter(([key]) => !UNUSED.test(key))) };
}

/** The UNet of a checkpoint, whose names depend on how it is built. */
export async function checkpointUNet(file: SafetensorsFile, config: UNetConfig): Promise<WeightSource> {
  return readNetwork(file, "unet", unetTable(config));
}

const WHERE: Partial<Record<WeightKind, string>> = {
  lora: "give it as a LoRA",
  unet: "give it as the UNet",
  checkpoint: "give it as the model",
};

/** @throws a sentence when the file holds another known kind of weights. */
export function expectKind(file: SafetensorsFile, kind: WeightKind): void {
  const found = weightKind(file.entries.keys());
  if (found === kind || (found === "unknown" && kind !== "checkpoint")) return;
  const text = `${file.path} is ${kindText(found)}, not ${kindText(kind)}`;
  throw new Error([text, WHERE[found] ?? []].flat().join("; "));
}

/** `a/b.safetensors` → `b` */
export function stem(path: string): string {
  return basename(path).replace(/\.safetensors$/, "");
}
