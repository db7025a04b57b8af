/**
 * @file Adapter files. ΔW = alpha/r · up·down of a plain one (Hu et al. 2022), down [r,in,k,k], up [out,r,1,1], of
 * linear layers without the kernel. Written with the names of kohya's trainer, which diffusers and ComfyUI read; read
 * in every naming of lora_keys.ts and every form of delta.ts.
 */

import { z } from "zod";
import { castTensor, type DType, floats, type HostTensor, sizeOf, toFloat32 } from "../tensor/index.ts";
import { type Delta, deltasOf, type LoraScaling, Misfit } from "./delta.ts";
import { type LoraKeys, type LoraNaming, type LoraNetwork, loraBase, loraKeys } from "./lora_keys.ts";
import { listed, quote, type SafetensorsFile, saveSafetensors } from "./safetensors.ts";

/** What an adapter can change in a network. */
export interface LoraTarget {
  /** Shapes of its parameters by name. */
  parameters: ReadonlyMap<string, readonly number[]>;
  /** Other names of modules: those of single-file checkpoints. */
  aliases?: ReadonlyMap<string, string>;
}

export interface LoraContent {
  /** By network and parameter. */
  deltas: ReadonlyMap<LoraNetwork, ReadonlyMap<string, Delta>>;
  /** Keys that say nothing about these networks, and are ignored elsewhere as well. */
  ignored: readonly string[];
}

/**
 * Matches an adapter file with the networks of a model.
 * @param config adapter_config.json, as PEFT writes it beside its file; for modules without an alpha of their own.
 * @throws one error that lists keys that fit nowhere, modules that lack a part, and shapes that do not fit; where it
 * can be told, with the base that the file was made for.
 */
export async function readLora(
  file: SafetensorsFile,
  targets: Readonly<Partial<Record<LoraNetwork, LoraTarget>>>,
  config?: unknown,
): Promise<LoraContent> {
  const { modules, left, ignored } = loraKeys(file.entries.keys());
  if (modules.length === 0)
    throw new Error(`${file.path} is no LoRA: it has no lora_down, lora_A, hada, lokr or diff tensors`);
  const paths = new Map(
    Object.entries(targets).map(([network, target]) => [network as LoraNetwork, modulePaths(target)]),
  );
  const scaling = peftScaling(file, config);
  const half: string[] = [];
  const wrong: string[] = [];
  const deltas = new Map<LoraNetwork, Map<string, Delta>>();
  for (const keys of modules) {
    const { network, module, parts } = keys;
    const path = paths.get(network)?.get(module);
    const found = deltas.get(network) ?? new Map<string, Delta>();
    deltas.set(network, found);
    const shapes = path === undefined ? undefined : shapesOf(targets[network]!, path);
    if (path === undefined || !shapes || found.has(`${path}.weight`) || found.has(`${path}.bias`)) {
      left.push(...parts.values());
      continue;
    }
    if (parts.size === 1 && parts.has("alpha")) {
      ignored.push(parts.get("alpha")!);
      continue;
    }
    try {
      const changes = await deltasOf(file, keys, shapes, await scalingOf(file, keys, path, scaling));
      for (const [name, delta] of changes) found.set(`${path}.${name}`, delta);
    } catch (error) {
      if (!(error instanceof Misfit)) throw error;
      if (error.message === "incomplete") half.push(module);
      else wrong.push(`${module} (${error.message})`);
    }
  }
  const problems = [
    ...listed("left over", left),
    ...listed("without all its parts", half),
    ...listed("of another shape", wrong),
  ];
  if (problems.length === 0) return { deltas, ignored };
  const text = [...(targets.unet?.parameters ?? [])].find(([name]) => name.endsWith(".attn2.to_k.weight"));
  const base = loraBase(file, text?.[1][1]);
  const whose = base === undefined ? "another network" : `another network, by its looks ${base}`;
  throw new Error(`${file.path} is a LoRA of ${whose}: ${problems.join("; ")}`);
}

/** Paths of modules by every name that a file may use. */
function modulePaths({ parameters, aliases = new Map() }: LoraTarget): Map<string, string> {
  const own = [...parameters.keys()].map((name) => name.replace(/\.\w+$/, ""));
  const paths = new Map<string, string>();
  for (const [name, path] of [...aliases, ...own.map((path) => [path, path] as const)])
    paths.set(name, path).set(name.replaceAll(".", "_"), path);
  return paths;
}

function shapesOf({ parameters }: LoraTarget, path: string) {
  const weight = parameters.get(`${path}.weight`);
  return weight && { weight, bias: parameters.get(`${path}.bias`) };
}

async function scalingOf(
  file: SafetensorsFile,
  { network, parts }: LoraKeys,
  path: string,
  scaling: ReturnType<typeof peftScaling>,
): Promise<LoraScaling> {
  const key = parts.get("alpha");
  if (key !== undefined) return { alpha: await readAlpha(file, key) };
  return { of: (rank) => scaling(network, path, rank) };
}

async function readAlpha(file: SafetensorsFile, key: string): Promise<number> {
  const { shape, dtype } = file.entries.get(key)!;
  const count = sizeOf(shape);
  const value = count === 1 ? toFloat32(await file.read(key)).data[0] : Number.NaN;
  if (!Number.isFinite(value))
    throw new Error(
      `${file.path}: ${quote(key)} is ${count === 1 ? value : `${dtype}[${shape}]`}; an alpha is one number`,
    );
  return value;
}

const positive = z.number().positive();
const patterns = z
  .record(z.string(), positive)
  .nullish()
  .transform((byPattern, { addIssue }) => {
    const read = [];
    for (const [text, value] of Object.entries(byPattern ?? {})) {
      const pattern = patternOf(text);
      if (pattern) read.push({ text, pattern, value });
      else addIssue(`pattern ${JSON.stringify(text)} is not read; write a simpler one`);
    }
    return read;
  });
const peftConfig = z.object({
  r: positive,
  lora_alpha: positive.nullish(),
  /** Of LoHa and LoKr. */
  alpha: positive.nullish(),
  use_rslora: z.boolean().nullish(),
  alpha_pattern: patterns,
  rank_pattern: patterns,
});

/**
 * Factors on ΔW from PEFT's settings: alpha/r, or alpha/√r with use_rslora (Kalajdzievski 2023). They stand in
 * adapter_config.json, or, as diffusers writes them, in the file's metadata, for each network.
 */
function peftScaling({ path, metadata }: SafetensorsFile, config?: unknown) {
  const parse = (json: unknown, where: string): z.infer<typeof peftConfig> => {
    const { data, error } = peftConfig.safeParse(json);
    if (data) return data;
    const [{ path: at, message }] = error.issues;
    throw new Error(`${where}: ${at.join(".") || "the whole"}: ${message}`);
  };
  const all = config === undefined ? undefined : parse(config, `the adapter_config.json of ${path}`);
  const written = config === undefined ? diffusersMetadata(metadata.lora_adapter_metadata) : {};
  const byNetwork = new Map(
    Object.entries(written).map(([network, json]) => [
      network,
      parse(json, `${path}: lora_adapter_metadata`),
    ]),
  );
  return (network: LoraNetwork, module: string, rank?: number): number | undefined => {
    const found = all ?? byNetwork.get(network);
    if (!found) return undefined;
    const of = (values: z.infer<typeof patterns>): number | undefined =>
      values.find(({ text, pattern }) => module === text || pattern.test(module))?.value;
    const alpha = of(found.alpha_pattern) ?? found.lora_alpha ?? found.alpha;
    const r = rank ?? of(found.rank_pattern) ?? found.r;
    return alpha ? alpha / (found.use_rslora ? Math.sqrt(r) : r) : undefined;
  };
}

/**
 * What PEFT's `get_pattern_key` matches modules' names with: a regular expression for the end of a name, from a dot on.
 * Undefined for those that might take for ever, and for what is none.
 */
function patternOf(text: string): RegExp | undefined {
  const repeats = text.replace(/\\d[+*]/g, "").match(/[*+{]/g)?.length ?? 0;
  if (repeats > 3 || /\)[*+{]/.test(text) || text.length > 200) return undefined;
  try {
    return new RegExp(`^(?:.*\\.)?(?:${text})$`);
  } catch {
    return undefined;
  }
}

/** `{"unet.r": 4, …}` by network; nothing for what is not such. */
function diffusersMetadata(text?: string): Record<string, Record<string, unknown>> {
  let json: unknown;
  try {
    json = JSON.parse(text ?? "{}");
  } catch {
    return {};
  }
  const out: Record<string, Record<string, unknown>> = {};
  for (const [key, value] of Object.entries(json ?? {})) {
    const [, network, name] = /^(unet|text_encoder|text_encoder_2)\.(.+)$/.exec(key) ?? [];
    if (network !== undefined) out[network] = { ...out[network], [name]: value };
  }
  return out;
}

/** Naming, module count, ranks, alphas and algorithms of an adapter file, whatever network it is for. */
export async function loraSummary(file: SafetensorsFile): Promise<{
  naming: LoraNaming | "unknown";
  modules: number;
  ranks: number[];
  alphas: number[];
  algorithms: string[];
}> {
  const { naming = "unknown", modules } = loraKeys(file.entries.keys());
  const ranks = new Set<number>();
  const alphas = new Set<number>();
  const algorithms = new Set<string>();
  for (const { parts } of modules) {
    for (const part of parts.keys())
      for (const [pattern, name] of ALGORITHMS) if (pattern.test(part)) algorithms.add(name);
    const down = ["down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"].flatMap((part) => parts.get(part) ?? [])[0];
    const rank = down === undefined ? undefined : file.entries.get(down)!.shape[0];
    if (rank !== undefined) ranks.add(rank);
    const alpha = parts.get("alpha");
    const scale = alpha === undefined ? rank : await readAlpha(file, alpha);
    if (scale !== undefined) alphas.add(scale);
  }
  const sorted = (values: Set<number>) => [...values].sort((a, b) => a - b);
  return {
    naming,
    modules: modules.length,
    ranks: sorted(ranks),
    alphas: sorted(alphas),
    algorithms: [...algorithms].sort(),
  };
}

/** By the parts that tell them. */
const ALGORITHMS: readonly (readonly [RegExp, string])[] = [
  [/^down$/, "LoRA"],
  [/^hada_/, "LoHa"],
  [/^lokr_/, "LoKr"],
  [/^(magnitude|dora_scale)$/, "DoRA"],
  [/^(diff|diff_b|w_norm|b_norm)$/, "differences"],
];

/**
 * Writes an adapter file with kohya's names.
 * @param modules by path in the UNet of diffusers, such as `mid_block.resnets.0.conv1`.
 */
export async function saveLora(
  path: string,
  modules: ReadonlyMap<string, { down: HostTensor; up: HostTensor; alpha: number }>,
  options: {
    dtype?: Extract<DType, "float32" | "float16">;
    metadata?: Readonly<Record<string, string>>;
  } = {},
): Promise<void> {
  const { dtype = "float32", metadata } = options;
  const tensors: Record<string, HostTensor> = {};
  for (const [module, { down, up, alpha }] of modules) {
    const name = `lora_unet_${module.replaceAll(".", "_")}`;
    const parts = { "lora_down.weight": down, "lora_up.weight": up, alpha: floats([], [alpha]) };
    for (const [part, t] of Object.entries(parts)) {
      const key = `${name}.${part}`;
      if (key in tensors) throw new Error(`${path}: two modules are called ${name}`);
      tensors[key] = castTensor(t, dtype);
    }
  }
  await saveSafetensors(path, tensors, { format: "pt", ...metadata });
}
