/**
 * @file Models and networks in another layout: a model folder becomes a single file or back, with adapters in its weights
 * if asked, and a network on its own gets the other naming.
 */

import { existsSync, renameSync, rmSync, statSync } from "node:fs";
import { readdir } from "node:fs/promises";
import process from "node:process";
import { atomically } from "../platform/index.ts";
import { schedulerConfig } from "../samplers/index.ts";
import type { HostTensor } from "../tensor/index.ts";
import {
  type KeyTable,
  matchKeys,
  SafetensorsFile,
  type TensorEntry,
  unetTable,
  vaeTable,
  type WeightKind,
  writeSafetensors,
} from "../weights/index.ts";
import { renewed } from "./autoencoder.ts";
import { type Network, readFolder } from "./base.ts";
import {
  below,
  CONFIG,
  checkpointConfig,
  markedScheduler,
  marksOf,
  PREFIXES,
  unetNaming,
} from "./checkpoint.ts";
import type { Loras } from "./components.ts";
import { about } from "./folder.ts";
import { expectKind } from "./kinds.ts";
import { withLoras } from "./merge.ts";
import { samplingMetadata } from "./settings.ts";
import { type Naming, unetLayoutOf, vaeConfigOf } from "./shapes.ts";
import {
  readWhole,
  sourcesOf,
  storedTensors,
  unetSettings,
  type WholeModel,
  writeCheckpoint,
  writeFolder,
} from "./whole.ts";

/** A network that can be converted alone. */
export type Part = Extract<Network, "unet" | "vae">;

export interface ConvertOptions {
  /** Takes this network alone, into a file. */
  part?: Part;
  /** Whether what is there may be replaced; default false. */
  force?: boolean;
  /** Adapters that become part of the weights, of a whole model; then it may keep its layout. */
  loras?: Loras;
}

/** Tensors of one network, how they are named, and what comes before their names. */
interface Found {
  naming: Naming;
  tensors: ReadonlyMap<string, TensorEntry>;
  table: KeyTable;
  metadata: Readonly<Record<string, string>>;
  /** Of a UNet. */
  marks: ReadonlyMap<string, HostTensor>;
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

const isFile = (path: string): boolean => path.endsWith(".safetensors");

/**
 * A model folder becomes a single file, a single file a folder, and a network on its own gets the other naming. It
 * appears whole or not at all.
 * @param from a model folder or a .safetensors file. @param to a .safetensors file, or a folder for a whole model.
 * @returns what adapters hold that has no use here, one sentence each.
 * @throws one sentence when this is none of these cases, or `to` is there and not to be replaced.
 */
export async function convertModel(
  from: string,
  to: string,
  { part, force = false, loras = {} }: ConvertOptions = {},
): Promise<string[]> {
  const folder = statSync(from).isDirectory();
  const isMerge = Object.keys(loras).length > 0;
  if (isMerge && part)
    throw new Error(`adapters go into a whole model; convert it first, then its ${part} alone`);
  const whole = isMerge || (part === undefined && (folder || !isFile(to)));
  if (whole && !isMerge && folder !== isFile(to))
    throw new Error(`${from} is a model folder already; give a name that ends in .safetensors`);
  if (!whole && !isFile(to))
    throw new Error(`${to}: one network becomes a file; end its name in .safetensors`);
  await checkTarget(to, force);
  if (!whole) {
    await writePart(to, from, part);
    return [];
  }
  const model = await readWhole(from);
  const { merged, warnings } = isMerge
    ? await withLoras(from, model, loras)
    : { merged: model, warnings: [] };
  if (isFile(to)) await writeCheckpoint(to, merged);
  else await replaceFolder(to, merged);
  return warnings;
}

async function replaceFolder(to: string, model: WholeModel): Promise<void> {
  const aside = `${to}.${process.pid}.old`;
  await atomically(to, async (temporary) => {
    await writeFolder(temporary, model);
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
