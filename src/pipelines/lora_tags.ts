/** @file Adapters named in prompts, as stable-diffusion-webui takes them: `<lora:name:0.8>`. */

import { readdir, realpath } from "node:fs/promises";
import { extname, isAbsolute, join, parse, relative, sep } from "node:path";
import { quote } from "../weights/index.ts";
import type { LoraStrength, Loras } from "./components.ts";

/** An adapter that a prompt names. */
export interface LoraTag {
  name: string;
  strength: { unet: number; text: number };
}

/** As large as ComfyUI takes them. */
const MOST = 100;

const TAG = /<(?:lora|lyco):([^<>]*)>/g;

/**
 * A prompt without its tags, and what they ask for. `<lora:name>` is 1, `<lora:name:0.8>` one strength for all,
 * `<lora:name:0.5:0.8>` that of the text encoders and that of the UNet; `te=0.5` and `unet=0.8` name them. The order
 * is that of stable-diffusion-webui's extra_networks_lora.py.
 * @throws one sentence for a tag that says something else.
 */
export function loraTags(prompt: string): { text: string; tags: LoraTag[] } {
  const tags: LoraTag[] = [];
  const text = prompt.replace(TAG, (tag, body: string) => {
    const [name, ...amounts] = body.split(":").map((part) => part.trim());
    const refuse = (): never => {
      throw new Error(`${quote(tag)} is no adapter; write <lora:name:0.8>, or <lora:name:te=0.5:unet=0.8>`);
    };
    const named = new Map<string, number>();
    const placed: number[] = [];
    for (const amount of amounts) {
      const [, key, digits] = /^(?:(te|unet)=)?([+-]?(?:\d+\.?\d*|\.\d+))$/.exec(amount) ?? refuse();
      const strength = Number(digits);
      if (Math.abs(strength) > MOST) refuse();
      if (key === undefined) placed.push(strength);
      else named.set(key, strength);
    }
    if (name === "" || placed.length > 2) refuse();
    const te = named.get("te") ?? placed[0] ?? 1;
    tags.push({ name, strength: { text: te, unet: named.get("unet") ?? placed[1] ?? te } });
    return "";
  });
  return { text: tags.length > 0 ? text.replace(/\s+/g, " ").trim() : prompt, tags };
}

/**
 * The adapters in a folder and the folders below it, by file name without its ending. Links that lead out of the folder
 * are left out.
 */
export async function loraFolder(folder: string): Promise<Map<string, string>> {
  const root = await realpath(folder).catch((error: NodeJS.ErrnoException) => {
    throw error.code === "ENOENT" ? new Error(`${folder}: no such folder`, { cause: error }) : error;
  });
  const found = new Map<string, string>();
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (extname(entry.name) !== ".safetensors") continue;
    const path = join(entry.parentPath, entry.name);
    const inside = relative(root, await realpath(path).catch(() => root));
    if (inside === "" || isAbsolute(inside) || inside === ".." || inside.startsWith(`..${sep}`)) continue;
    const { name } = parse(entry.name);
    if (!found.has(name)) found.set(name, path);
  }
  return found;
}

/**
 * Paths and strengths of what tags ask for; one that is named twice is as strong as both.
 * @throws one sentence with the names that are near, for one that is not there.
 */
export function resolveTags(tags: readonly LoraTag[], known: ReadonlyMap<string, string>): Loras {
  const loras: Record<string, { unet: number; text: number }> = {};
  for (const { name, strength } of tags) {
    const path = known.get(name);
    if (path === undefined) throw new Error(unknownLora(name, [...known.keys()]));
    const before = loras[path] ?? { unet: 0, text: 0 };
    loras[path] = { unet: before.unet + strength.unet, text: before.text + strength.text };
  }
  return loras;
}

/** A sentence on a name that is not known, with those like it. */
export function unknownLora(name: string, known: readonly string[]): string {
  const there = known.length === 0 ? "there are none" : `there are ${nearest(name, known).join(", ")}`;
  return `there is no LoRA ${quote(name)}; ${there}`;
}

const SHOWN = 8;

/** The names most like one, by shared pairs of letters (Dice 1945). */
function nearest(name: string, known: readonly string[]): string[] {
  if (known.length <= SHOWN) return [...known];
  const pairs = (text: string) => {
    const lower = text.toLowerCase();
    return new Set(Array.from({ length: Math.max(0, lower.length - 1) }, (_, i) => lower.slice(i, i + 2)));
  };
  const wanted = pairs(name);
  const likeness = (other: string): number => {
    const has = pairs(other);
    return (2 * [...wanted].filter((pair) => has.has(pair)).length) / (wanted.size + has.size || 1);
  };
  const near = known.map((other) => ({ other, like: likeness(other) })).sort((a, b) => b.like - a.like);
  return [...near.slice(0, SHOWN).map(({ other }) => other), "…"];
}

/** Adapters of two sources; one that both have is as strong as both. */
export function addedStrengths(a: Loras, b: Loras): Loras {
  const parts = (s: LoraStrength) => (typeof s === "number" ? { unet: s, text: s } : s);
  const out: Record<string, LoraStrength> = { ...a };
  for (const [path, strength] of Object.entries(b)) {
    const [x, y] = [parts(out[path] ?? 0), parts(strength)];
    out[path] = Object.hasOwn(a, path) ? { unet: x.unet + y.unet, text: x.text + y.text } : strength;
  }
  return out;
}

/**
 * Prompts without their tags, and the adapters that all of them name.
 * @param folder that they are looked up in.
 * @throws one sentence for names that the folder lacks, and prompts that ask for different ones.
 */
export async function promptLoras(
  prompts: readonly string[],
  folder?: string,
): Promise<{ prompts: readonly string[]; loras: Loras }> {
  const read = prompts.map(loraTags);
  const tags = read[0]?.tags ?? [];
  if (read.some((other) => JSON.stringify(other.tags) !== JSON.stringify(tags)))
    throw new Error("prompts of one call name different LoRAs; make their pictures one after the other");
  if (tags.length === 0) return { prompts, loras: {} };
  if (folder === undefined)
    throw new Error(
      `the prompt names the LoRA ${quote(tags[0].name)}, but no folder of LoRAs is given (--lora-dir, or loraFolder)`,
    );
  return { prompts: read.map(({ text }) => text), loras: resolveTags(tags, await loraFolder(folder)) };
}
