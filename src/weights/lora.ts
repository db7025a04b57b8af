/**
 * @file Low-rank adapter files (Hu et al. 2022): ΔW = alpha/r · up·down, down [r,in,k,k], up [out,r,1,1], of
 * linear layers without the kernel. Written with the names of kohya's trainer, which diffusers and ComfyUI read;
 * those of PEFT are read as well.
 */

import { castTensor, type DType, floats, type HostTensor, toFloat32 } from "../tensor/index.ts";
import { listed, quote, type SafetensorsFile, saveSafetensors, type TensorEntry } from "./safetensors.ts";

/** What an adapter file holds for one module. */
export interface LoraModule {
  rank: number;
  /** As stored; equal to the rank where the file has none. */
  alpha: number;
  down: TensorEntry;
  up: TensorEntry;
}

type Part = "down" | "up" | "alpha";

const PARTS: Readonly<Record<string, Part>> = {
  lora_A: "down",
  lora_B: "up",
  lora_down: "down",
  lora_up: "up",
};
/** `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`: which `_` was a dot is lost. */
const KOHYA = /^lora_unet_(\w+)\.(?:(lora_down|lora_up)\.weight|alpha)$/;
/** `unet.mid_block.attentions.0.proj_in.lora_A.weight` */
const PEFT = /^(?:base_model\.model\.)?(?:unet\.)?([\w.]+)\.(lora_[AB])(?:\.default)?\.weight$/;

/** Keys by module, as the file names it, and part. Keys of no known naming are left over. */
function loraKeys(keys: Iterable<string>): {
  naming: "kohya" | "peft" | undefined;
  modules: Map<string, Partial<Record<Part, string>>>;
  left: string[];
} {
  const modules = new Map<string, Partial<Record<Part, string>>>();
  const left: string[] = [];
  let naming: "kohya" | "peft" | undefined;
  for (const key of keys) {
    const kohya = KOHYA.exec(key);
    const match = kohya ?? PEFT.exec(key);
    if (!match) {
      left.push(key);
      continue;
    }
    naming ??= kohya ? "kohya" : "peft";
    const parts = modules.get(match[1]) ?? {};
    modules.set(match[1], parts);
    const part = match[2] === undefined ? "alpha" : PARTS[match[2]];
    if (parts[part] === undefined) parts[part] = key;
    else left.push(key); // the same module under two names
  }
  return { naming, modules, left };
}

/**
 * Matches an adapter file with the modules of a network.
 * @param shapes of the weights of all modules that can be adapted, by path.
 * @param aliases other names of some of these paths.
 * @throws one error that lists keys that fit nowhere, modules that lack a part, and shapes that do not fit.
 */
export async function readLora(
  file: SafetensorsFile,
  shapes: ReadonlyMap<string, readonly number[]>,
  aliases: ReadonlyMap<string, string> = new Map(),
): Promise<Map<string, LoraModule>> {
  const paths = new Map<string, string>();
  for (const [name, path] of [...aliases, ...[...shapes.keys()].map((path) => [path, path] as const)])
    paths.set(name, path).set(name.replaceAll(".", "_"), path);
  const { modules, left } = loraKeys(file.entries.keys());
  const half: string[] = [];
  const wrong: string[] = [];
  const found = new Map<string, LoraModule>();
  for (const [name, { down: downKey, up: upKey, alpha }] of modules) {
    const path = paths.get(name);
    if (path === undefined || found.has(path)) {
      left.push(...[downKey, upKey, alpha].filter((key) => key !== undefined));
      continue;
    }
    if (!downKey || !upKey) {
      half.push(name);
      continue;
    }
    const down = file.entries.get(downKey)!;
    const rank = down.shape[0];
    const [out, ...rest] = shapes.get(path)!;
    const fitted = {
      down: fitShape(down, [rank, ...rest]),
      up: fitShape(file.entries.get(upKey)!, [out, rank, ...rest.slice(1).map(() => 1)]),
    };
    if (!rank || !fitted.down || !fitted.up)
      wrong.push(`${name} ([${down.shape}] and [${file.entries.get(upKey)!.shape}] for [${[out, ...rest]}])`);
    else
      found.set(path, {
        rank,
        alpha: alpha ? await readAlpha(file, alpha) : rank,
        down: fitted.down,
        up: fitted.up,
      });
  }
  const problems = [
    ...listed("left over", left),
    ...listed("without down or up", half),
    ...listed("of another shape", wrong),
  ];
  if (modules.size === 0) throw new Error(`${file.path} is no LoRA: it has no lora_down or lora_A tensors`);
  if (problems.length > 0)
    throw new Error(`${file.path} is a LoRA of another network: ${problems.join("; ")}`);
  return found;
}

/** The tensor with a shape that differs in ones at the end only: linear layers are stored as 1×1 kernels, too. */
function fitShape(entry: TensorEntry, shape: readonly number[]): TensorEntry | undefined {
  const bare = (dims: readonly number[]) => dims.join().replace(/(,1)+$/, "");
  return bare(entry.shape) === bare(shape) ? { ...entry, shape } : undefined;
}

async function readAlpha(file: SafetensorsFile, key: string): Promise<number> {
  const { shape, dtype } = file.entries.get(key)!;
  const count = shape.reduce((n, d) => n * d, 1);
  const value = count === 1 ? toFloat32(await file.read(key)).data[0] : Number.NaN;
  if (!Number.isFinite(value))
    throw new Error(
      `${file.path}: ${quote(key)} is ${count === 1 ? value : `${dtype}[${shape}]`}; an alpha is one number`,
    );
  return value;
}

/** Naming, module count, ranks and alphas of an adapter file, whatever network it is for. */
export async function loraSummary(
  file: SafetensorsFile,
): Promise<{ naming: string; modules: number; ranks: number[]; alphas: number[] }> {
  const { naming = "unknown", modules } = loraKeys(file.entries.keys());
  const ranks = new Set<number>();
  const alphas = new Set<number>();
  for (const { down, alpha } of modules.values()) {
    const rank = down === undefined ? undefined : file.entries.get(down)!.shape[0];
    if (rank !== undefined) ranks.add(rank);
    const scale = alpha === undefined ? rank : await readAlpha(file, alpha);
    if (scale !== undefined) alphas.add(scale);
  }
  const sorted = (values: Set<number>) => [...values].sort((a, b) => a - b);
  return { naming, modules: modules.size, ranks: sorted(ranks), alphas: sorted(alphas) };
}

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
