/** @file Which files of a repository are fetched. */

import { posix } from "node:path";
import picomatch from "picomatch";
import { z } from "zod";

/** Of every component: configs, vocabularies, sentence pieces. Weights are chosen apart. */
const CONFIG = /^[^/]+\.(?:json|txt|model)$/;
/** A weights file, perhaps one of several, or their index; the group is the variant. */
const WEIGHTS = [
  /^[\w-]+?(?:\.([\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.([\w-]+))?\.safetensors$/,
  /^[\w-]+(?:\.([\w-]+))?\.safetensors\.index(?:\.([\w-]+))?\.json$/,
];
/** Names in a sentence. */
const MAX_NAMES = 12;

type Named = { path: string };

/** What model_index.json says about files: components, and the few-step weights beside them. */
const indexSchema = z.looseObject({
  fewstep: z
    .looseObject({ lightning: z.looseObject({ files: z.record(z.string(), z.string()) }).optional() })
    .optional(),
});

/**
 * Files by name or glob. A glob without a slash is for files of every folder.
 * @throws when one of `wanted` is not there.
 */
export function selectNamed<T extends Named>(
  files: readonly T[],
  wanted: readonly string[],
  repo: string,
): T[] {
  const chosen = new Set<T>();
  for (const name of wanted) {
    const isMatch = picomatch(name, { basename: !name.includes("/") });
    const matches = files.filter(({ path }) => path === name || isMatch(path));
    if (matches.length === 0)
      throw new Error(`${repo} has no file ${name}; its weights are ${weightNames(files)}`);
    for (const file of matches) chosen.add(file);
  }
  return [...chosen];
}

/**
 * What runs a model folder in diffusers layout: configs, tokenizers and one set of weights for every component.
 * @param index text of model_index.json
 * @param variant of the weights, such as "fp16"; components without it give their plain ones
 * @throws when no component has the variant.
 */
export function selectModel<T extends Named>(
  files: readonly T[],
  index: string,
  { repo, variant }: { repo: string; variant?: string },
): T[] {
  const { data } = indexSchema.safeParse(parseJson(index));
  if (!data) throw new Error(`model_index.json of ${repo} is damaged: it lists no components`);
  const { lightning } = data.fewstep ?? {};
  const beside = ["model_index.json", ...Object.values(lightning?.files ?? {})];
  const components = Object.entries(data).filter(([, entry]) => Array.isArray(entry) && entry[0] !== null);
  const there = new Set<string>();
  const chosen = components.flatMap(([name]) => {
    const own = files.filter(({ path }) => posix.dirname(path) === name);
    const variants = new Set(own.flatMap((file) => variantOf(file) ?? []));
    for (const v of variants) there.add(v);
    const taken = [variant ?? "", "", "fp16"].find((v) => variants.has(v));
    return own.filter((file) => (variantOf(file) ?? taken) === taken && (isWeights(file) || isConfig(file)));
  });
  if (variant !== undefined && !there.has(variant)) {
    const names = [...there].filter((v) => v !== "").join(", ");
    throw new Error(`${repo} has no weights of the variant ${variant}; it has ${names || "plain ones"}`);
  }
  return [...files.filter(({ path }) => beside.includes(path)), ...chosen];
}

/** The sentence for a repository that is no model folder. */
export function askForNames(files: readonly Named[], repo: string): Error {
  return new Error(
    `${repo} is no model folder, it has no model_index.json: name the files to fetch; its weights are ${weightNames(files)}`,
  );
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** "" for plain weights, undefined for other files. */
function variantOf({ path }: Named): string | undefined {
  const match = WEIGHTS.map((pattern) => pattern.exec(posix.basename(path))).find((m) => m !== null);
  return match ? (match[1] ?? match[2] ?? "") : undefined;
}

const isWeights = (file: Named): boolean => variantOf(file) !== undefined;
const isConfig = ({ path }: Named): boolean => CONFIG.test(posix.basename(path));

function weightNames(files: readonly Named[]): string {
  const names = files.map(({ path }) => path).filter((path) => path.endsWith(".safetensors"));
  const more = names.length > MAX_NAMES ? ` and ${names.length - MAX_NAMES} more` : "";
  return names.length > 0 ? names.slice(0, MAX_NAMES).join(", ") + more : "none in the format of safetensors";
}
