/**
 * @file Names of adapter files, as kohya's trainer, diffusers, PEFT, LyCORIS and ComfyUI write them: which module of
 * which network a key is about, and which part of its change it holds.
 */

import type { SafetensorsFile } from "./safetensors.ts";

export type LoraNetwork = "unet" | "text_encoder" | "text_encoder_2";

/** What ends a key, and the part it stands for: `$1` is the first group. */
const PARTS: readonly (readonly [RegExp, string])[] = [
  [/\.lora_(down|up|mid)(?:\.default)?\.weight$/, "$1"],
  [/\.lora_A(?:\.default)?\.weight$/, "down"],
  [/\.lora_B(?:\.default)?\.weight$/, "up"],
  [/(?:\.lora_linear_layer|[._]lora)\.(down|up)\.weight$/, "$1"],
  [/\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$/, "magnitude"],
  [/(?:[._]lora)?\.(alpha|dora_scale)$/, "$1"],
  [/\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.default)?$/, "$1"],
  [/\.(diff|diff_b|w_norm|b_norm)$/, "$1"],
];

/** What begins a key. After those that end in `_`, names have `_` where the module's path has dots. */
const NETWORKS: readonly (readonly [RegExp, LoraNetwork])[] = [
  [/^lora_te2_/, "text_encoder_2"],
  [/^lora_te1?_/, "text_encoder"],
  [/^(?:lora_unet|lycoris)_/, "unet"],
  [/^text_encoders\.clip_g\.transformer\./, "text_encoder_2"],
  [/^text_encoders\.clip_l\.transformer\./, "text_encoder"],
  [/^(?:base_model\.model\.)?text_encoder_2\.(?:base_model\.model\.)?/, "text_encoder_2"],
  [/^(?:base_model\.model\.)?text_encoder\.(?:base_model\.model\.)?/, "text_encoder"],
  [/^(?:base_model\.model\.)?(?:unet\.|(?:model\.)?diffusion_model\.)?(?:base_model\.model\.)?/, "unet"],
];

/** Keys that say nothing about the networks: embeddings that trainers put into the same file. */
const IGNORED = /^(bundle_emb\.|emb_params$|clip_[lg]$)|\.position_ids$/;

/** A module as a file names it, and its keys by part. */
export interface LoraKeys {
  network: LoraNetwork;
  /** Without what stands for the network: a path, or one with `_` for dots. */
  module: string;
  parts: Map<string, string>;
}

export type LoraNaming = "kohya" | "diffusers" | "PEFT" | "ComfyUI";

/** Keys by module as the file names it. Keys of no known naming are left over. */
export function loraKeys(keys: Iterable<string>): {
  naming: LoraNaming | undefined;
  modules: LoraKeys[];
  left: string[];
  ignored: string[];
} {
  const modules = new Map<string, LoraKeys>();
  const left: string[] = [];
  const ignored: string[] = [];
  let naming: LoraNaming | undefined;
  for (const key of keys) {
    const [pattern, name] = PARTS.find(([pattern]) => pattern.test(key)) ?? [];
    const match = pattern?.exec(key);
    if (!match || name === undefined) {
      (IGNORED.test(key) ? ignored : left).push(key);
      continue;
    }
    naming ??= namingOf(key);
    const before = key.slice(0, match.index);
    const [prefix, network] = NETWORKS.find(([prefix]) => prefix.test(before))!;
    const module = modernPath(before.replace(prefix, ""), network);
    const found = modules.get(`${network} ${module}`) ?? { network, module, parts: new Map() };
    modules.set(`${network} ${module}`, found);
    const part = name.replace("$1", match[1]);
    if (found.parts.has(part)) left.push(key);
    else found.parts.set(part, key);
  }
  return { naming, modules: [...modules.values()], left, ignored };
}

function namingOf(key: string): LoraNaming {
  if (/^(lora_(unet|te[12]?)|lycoris)_/.test(key)) return "kohya";
  if (/^((model\.)?diffusion_model|text_encoders)\./.test(key)) return "ComfyUI";
  return /\.lora_[AB]\.|^base_model\./.test(key) ? "PEFT" : "diffusers";
}

/** Paths of diffusers before 0.22: `attn1.processor.to_q`, and `to_out` for its first layer. */
function modernPath(module: string, network: LoraNetwork): string {
  if (network === "unet")
    return module.replace(/\.processor\.(to_\w+)$/, ".$1").replace(/\.to_out$/, ".to_out.0");
  return module.replace(/\.self_attn\.to_([qkv])$/, ".self_attn.$1_proj").replace(/\.to_out$/, ".out_proj");
}

/** What other bases are known by, from their keys. */
const BASES: readonly (readonly [string, RegExp])[] = [
  ["FLUX.1", /(double|single)_blocks[._]|single_transformer_blocks[._]/],
  ["Stable Diffusion 3", /joint_blocks[._]|lora_transformer_|^transformer\.transformer_blocks\./],
  ["a video model", /self_attn\.[qkvo]\.|temporal|motion_modules/],
];

/** Values of kohya's `ss_base_model_version` and of `modelspec.architecture`. */
const VERSIONS: readonly (readonly [string, RegExp])[] = [
  ["Stable Diffusion 1.x", /^(sd_)?v?1|^stable-diffusion-v1/],
  ["Stable Diffusion 2.x", /^(sd_)?v?2|^stable-diffusion-v2/],
  ["Stable Diffusion 3", /^sd_?3|^stable-diffusion-3/],
  ["FLUX.1", /^flux/i],
];

/** Text widths, which keys and values of cross-attention take. */
const WIDTHS: Readonly<Record<number, string>> = {
  768: "Stable Diffusion 1.x",
  1024: "Stable Diffusion 2.x",
  2048: "SDXL",
};

/**
 * The base that an adapter was made for, as far as keys, metadata and shapes tell.
 * @param textWidth of the network that it does not fit; its own base is no answer.
 */
export function loraBase({ entries, metadata }: SafetensorsFile, textWidth = 0): string | undefined {
  const keys = [...entries.keys()];
  const known = BASES.find(([, pattern]) => keys.some((key) => pattern.test(key)))?.[0];
  if (known) return known;
  const said = metadata.ss_base_model_version ?? metadata["modelspec.architecture"] ?? "";
  const version = VERSIONS.find(([, pattern]) => pattern.test(said))?.[0];
  if (version) return version;
  const found = keys.find((key) => /attn2[._]to_[kv][._]\S*(down|lora_A)(\.default)?\.weight$/.test(key));
  const width = found === undefined ? 0 : entries.get(found)!.shape[1];
  return width === textWidth ? undefined : WIDTHS[width];
}
