/** @file The icon dataset: SVG icon sets rendered to small pictures, with captions and a fixed hold-out. */

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import sharp from "sharp";
import { atomicWrite } from "../platform/index.ts";
import { tensor } from "../tensor/index.ts";
import { saveSafetensors } from "../weights/index.ts";
import { ANNOTATIONS, fetchPackage, STYLES, type StyleSource } from "./sources.ts";

export interface IconRow {
  /** "style/concept" */
  id: string;
  /** Unicode sequence without variation selectors, or the icon's name where it has none. */
  concept: string;
  style: string;
  label: string;
  keywords: string[];
  split: "train" | "heldout-pair" | "heldout-style";
}

export interface BuildIconsOptions {
  /** Folder to write. */
  out: string;
  /** Side of the pictures in pixels. Default 64. */
  size?: number;
  /** Folder for fetched packages. */
  cache: string;
  onProgress?: (done: number, total: number) => void;
}

export interface IconsSummary {
  pictures: number;
  concepts: number;
  splits: Record<string, number>;
  /** Icons that could not be rendered, with the reason. */
  skipped: string[];
}

interface IconSet {
  icons: Record<string, { body: string; width?: number; height?: number; left?: number; top?: number }>;
  width?: number;
  height?: number;
}

interface Annotation {
  label: string;
  tags?: string[];
  hexcode: string;
  group?: number;
  gender?: number;
  skins?: unknown[];
}

const FLAGS = 9;
const SKIN =
  /(^|-)(light|dark|medium)(-(light|dark))?(-skin-tone)?$|skin-tone|medium-(light|dark)|-(light|dark)-/;

/** 5 % of pairs, by content and for ever: the first 32 bits of a hash below 0.05·2³². */
function heldOutPair(concept: string, style: string): boolean {
  const hash = createHash("sha256").update(`${concept}/${style}`).digest();
  return hash.readUInt32BE(0) < 0.05 * 2 ** 32;
}

function bare(hexcode: string): string {
  return hexcode.toLowerCase().replace(/-fe0f/g, "");
}

function kebab(label: string): string {
  return label
    .toLowerCase()
    .normalize("NFD")
    .replace(/[\u0300-\u036f’'“”".!,()]/g, "")
    .replace(/&/g, "and")
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-|-$/g, "");
}

/** Maps icon names to concepts, through the code points that some sets publish and the names of Unicode. */
class Concepts {
  private readonly byHex = new Map<string, Annotation>();
  private readonly byName = new Map<string, string>();

  constructor(annotations: readonly Annotation[]) {
    for (const a of annotations) {
      this.byHex.set(bare(a.hexcode), a);
      this.byName.set(kebab(a.label), bare(a.hexcode));
    }
  }

  learn(chars: Readonly<Record<string, string>>): void {
    for (const [hex, name] of Object.entries(chars)) {
      const concept = bare(hex);
      if (this.byHex.has(concept) && !this.byName.has(name)) this.byName.set(name, concept);
    }
  }

  /** What an icon shows, or undefined when it is no picture of its own (skin tones, flags, gendered copies). */
  find(name: string): { concept: string; label: string; keywords: string[] } | undefined {
    if (SKIN.test(name) && !this.byName.has(name)) return undefined;
    const concept = this.byName.get(name);
    const annotation = concept === undefined ? undefined : this.byHex.get(concept);
    if (!concept || !annotation || annotation.group === FLAGS || annotation.group === undefined)
      return undefined;
    if (annotation.gender !== undefined && concept.includes("200d")) return undefined;
    const label = annotation.label.toLowerCase().replace(/[“”:]/g, "").replace(/’/g, "'");
    const keywords = (annotation.tags ?? []).filter((t) => /^[a-z][a-z -]+$/.test(t) && t !== label);
    return { concept, label, keywords };
  }
}

interface Icon extends IconRow {
  svg: string;
}

async function readSet(
  source: StyleSource,
  cache: string,
): Promise<{ source: StyleSource; set: IconSet; chars: Record<string, string> }> {
  const folder = await fetchPackage(source, cache);
  const json = async (file: string) => JSON.parse(await readFile(join(folder, file), "utf8"));
  return { source, set: await json("icons.json"), chars: await json("chars.json") };
}

async function collect(cache: string): Promise<Icon[]> {
  const annotations = await fetchPackage(ANNOTATIONS, cache);
  const concepts = new Concepts(JSON.parse(await readFile(join(annotations, "en", "data.json"), "utf8")));
  const sets = await Promise.all(STYLES.map((s) => readSet(s, cache)));
  for (const { chars } of sets) concepts.learn(chars);
  const icons = new Map<string, Icon>();
  for (const { source, set } of sets)
    for (const [name, icon] of Object.entries(set.icons).sort(([a], [b]) => (a < b ? -1 : 1))) {
      const found = concepts.find(name);
      if (!found) continue;
      const id = `${source.style}/${found.concept}`;
      if (icons.has(id)) continue;
      const { left = 0, top = 0, width = set.width ?? 16, height = set.height ?? 16 } = icon;
      const svg =
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ' +
        `width="${width}" height="${height}" viewBox="${left} ${top} ${width} ${height}">${icon.body}</svg>`;
      icons.set(id, { id, ...found, style: source.style, split: "train", svg });
    }
  const rows = [...icons.values()];
  const base = new Set(STYLES.filter((s) => !s.heldOut).map((s) => s.style));
  const seen = new Map<string, number>();
  for (const r of rows) if (base.has(r.style)) seen.set(r.concept, (seen.get(r.concept) ?? 0) + 1);
  for (const r of rows) {
    // A held-out pair is generalisation only when the concept is seen in other styles.
    if (!base.has(r.style)) r.split = "heldout-style";
    else if (seen.get(r.concept)! >= 3 && heldOutPair(r.concept, r.style)) r.split = "heldout-pair";
  }
  return rows;
}

/** One icon on white, with a margin of one part in 32. RGB, row by row. */
async function render(svg: string, size: number): Promise<Uint8Array> {
  const margin = Math.round(size / 32);
  const inner = size - 2 * margin;
  const [, width] = /width="([\d.]+)"/.exec(svg)!;
  const fit = { fit: "contain", background: "#ffffff00" } as const;
  const white = { r: 255, g: 255, b: 255, alpha: 1 };
  const { data } = await sharp(Buffer.from(svg), {
    density: Math.min(2400, (72 * inner * 4) / Number(width)),
  })
    .resize(inner, inner, fit)
    .flatten({ background: white })
    .extend({ top: margin, bottom: margin, left: margin, right: margin, background: white })
    .removeAlpha()
    .toColourspace("srgb")
    .raw()
    .toBuffer({ resolveWithObject: true });
  if (data.length !== size * size * 3) throw new Error(`rendered to ${data.length} bytes`);
  return data;
}

/**
 * Builds the dataset: `images.safetensors` (uint8 [N,size,size,3]), `metadata.jsonl` (one row a picture) and
 * `dataset.json` (sources, licences, counts). The same sources give the same bytes.
 */
export async function buildIcons({
  out,
  size = 64,
  cache,
  onProgress,
}: BuildIconsOptions): Promise<IconsSummary> {
  const icons = await collect(cache);
  const rows: IconRow[] = [];
  const pictures: Uint8Array[] = [];
  const skipped: string[] = [];
  for (const [i, { svg, ...row }] of icons.entries()) {
    try {
      pictures.push(await render(svg, size));
      rows.push(row);
    } catch (error) {
      skipped.push(`${row.id}: ${error instanceof Error ? error.message.split("\n")[0] : error}`);
    }
    onProgress?.(i + 1, icons.length);
  }
  const all = new Uint8Array(rows.length * size * size * 3);
  pictures.forEach((p, i) => {
    all.set(p, i * size * size * 3);
  });
  const splits: Record<string, number> = {};
  for (const r of rows) splits[r.split] = (splits[r.split] ?? 0) + 1;
  const concepts = new Set(rows.map((r) => r.concept)).size;
  await saveSafetensors(join(out, "images.safetensors"), {
    images: tensor("uint8", [rows.length, size, size, 3], all),
  });
  const text = new TextEncoder();
  await atomicWrite(
    join(out, "metadata.jsonl"),
    text.encode(rows.map((r) => `${JSON.stringify(r)}\n`).join("")),
  );
  const description = {
    kind: "icons",
    version: 1,
    size,
    pictures: rows.length,
    concepts,
    splits,
    sources: [...STYLES, ANNOTATIONS],
    holdOut:
      "style fluent-emoji; pairs whose sha256(concept/style) starts below 0.05, of concepts in 3 or more base styles",
  };
  await atomicWrite(join(out, "dataset.json"), text.encode(`${JSON.stringify(description, null, 2)}\n`));
  return { pictures: rows.length, concepts, splits, skipped };
}
