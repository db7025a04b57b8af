/** @file What weights files and model folders hold, whether they are whole, and what they are for. No data is read. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { clipTextConfig, type UNetConfig, unetConfig, vaeConfig } from "../models/index.ts";
import {
  compareKeys,
  type KeyDifferences,
  SafetensorsFile,
  SDXL_FAMILY,
  type WeightContent,
  weightContent,
} from "../weights/index.ts";
import { readAutoencoder, renewed } from "./autoencoder.ts";
import { NETWORKS, type Network } from "./base.ts";
import {
  BESIDE,
  below,
  checkpointConfig,
  PREFIXES,
  parsedModel,
  tables,
  UNUSED,
  unetNaming,
  unetSource,
} from "./checkpoint.ts";
import { readJson, sourceOf, weightsFiles } from "./folder.ts";
import { OPTIONS } from "./kinds.ts";
import {
  networkParameters,
  type ParameterShapes,
  textParameters,
  unetParameters,
  vaeParameters,
} from "./parameters.ts";
import { unetConfigOf } from "./shapes.ts";

/** Whether the tensors of networks are those that they need. */
export interface Completeness extends KeyDifferences {
  /** Tensors that are known and that nothing here needs. */
  unused: string[];
}

export interface FileContents extends WeightContent {
  /** How it is used, or why it is not. */
  use: string;
  /** Undefined where it is not known what there should be. */
  complete?: Completeness;
}

/** What a weights file is, told from its keys and shapes. @throws one sentence when it is no safetensors file. */
export async function describeFile(path: string): Promise<FileContents> {
  await using file = await SafetensorsFile.open(path);
  const content = weightContent(file.entries);
  const { kind, family } = content;
  if (family !== undefined && family !== SDXL_FAMILY)
    return { ...content, use: `none: it is of ${family}, fewstep runs models of the SDXL family` };
  const option = OPTIONS[kind];
  if (!option) return { ...content, use: "none: there is no option for it" };
  try {
    const complete = await completenessOf(file, content);
    const use = `${option} ${path}`;
    return { ...content, use, ...(complete ? { complete } : {}) };
  } catch (error) {
    return { ...content, use: `none: ${(error as Error).message}` };
  }
}

async function completenessOf(
  file: SafetensorsFile,
  { kind }: WeightContent,
): Promise<Completeness | undefined> {
  if (kind === "checkpoint") return checkpointCompleteness(file);
  if (kind === "unet") {
    const { naming, prefix } = unetNaming(file);
    let config: UNetConfig;
    try {
      config = unetConfigOf(below(file.entries, prefix), naming);
    } catch {
      return undefined; // sizes that are not SDXL's: the model it is used with tells
    }
    return compared([[unetParameters(config), (await unetSource(file, config)).tensors]]);
  }
  if (kind === "vae") {
    const { vae, source } = await readAutoencoder(file.path);
    const needed = vae.full && vaeParameters(vae.full);
    return needed && compared([[needed, source.tensors]]);
  }
  if (kind === "tiny-vae") await readAutoencoder(file.path);
  return undefined;
}

async function checkpointCompleteness(file: SafetensorsFile): Promise<Completeness> {
  const model = parsedModel(await checkpointConfig(file));
  const named = tables(model.unet, model.vae, model.text[1]);
  const needed = networkParameters(model);
  const pairs: [ParameterShapes, Tensors][] = [];
  for (const network of NETWORKS)
    pairs.push([needed[network], await named[network].read(file, PREFIXES[network])]);
  const inside = (key: string) => Object.values(PREFIXES).some((prefix) => key.startsWith(prefix));
  pairs.push([{}, new Map([...file.entries].filter(([key]) => !inside(key)))]);
  return compared(pairs);
}

type Tensors = ReadonlyMap<string, { shape: readonly number[] }>;

function compared(pairs: readonly (readonly [ParameterShapes, Tensors])[]): Completeness {
  const all: Completeness = { missing: [], left: [], wrong: [], unused: [] };
  for (const [needed, tensors] of pairs) {
    const isUnused = (key: string) => !Object.hasOwn(needed, key) && (UNUSED.test(key) || BESIDE.test(key));
    const counted = [...tensors].filter(([key]) => !isUnused(key));
    const { missing, left, wrong } = compareKeys(needed, Object.fromEntries(counted));
    all.missing.push(...missing);
    all.left.push(...left);
    all.wrong.push(...wrong);
    all.unused.push(...[...tensors.keys()].filter(isUnused));
  }
  return all;
}

/**
 * Whether a component of a model folder has the tensors that its config asks for; undefined for components that have
 * none, or are none of SDXL's networks.
 * @throws one sentence when its config or a file is damaged.
 */
export async function componentCompleteness(folder: string, name: string): Promise<Completeness | undefined> {
  const path = join(folder, name, "config.json");
  if (!NETWORKS.includes(name as Network) || !existsSync(path)) return undefined;
  const config = await readJson(path);
  if (name === "vae" && config._class_name === "AutoencoderTiny") return undefined;
  const needed = {
    text_encoder: () => textParameters(clipTextConfig(config), false),
    text_encoder_2: () => textParameters(clipTextConfig(config), true),
    unet: () => unetParameters(unetConfig(config)),
    vae: () => vaeParameters(vaeConfig(config)),
  }[name as Network]();
  const { tensors } = await sourceOf(await weightsFiles(join(folder, name)));
  return compared([[needed, name === "vae" ? renewed(tensors) : tensors]]);
}
