/** @file What a weights file holds, told from its keys and shapes. Names of files say nothing. */

/** In the order they are tried: name, words, and patterns each of which some key is like. */
const KINDS = [
  [
    "lora",
    "a LoRA",
    /[._](lora_(down|up|A|B)|lora(_linear_layer)?\.(down|up))\.|\.((\w+_)?lora\.(down|up)|hada_w1_a|lokr_w[12](_a)?|oft_(blocks|diag)|a1|diff|w_norm)(\.|$)/,
  ],
  [
    "controlnet",
    "a ControlNet",
    /^(control_model\.|controlnet_cond_embedding\.|input_hint_block\.|lora_controlnet$)/,
  ],
  ["adapter", "an adapter for picture prompts", /^(ip_adapter|image_proj|adapter\.body|to_k_ip)\b/],
  [
    "checkpoint",
    "a single-file checkpoint",
    /^model\.diffusion_model\./,
    /^(conditioner|cond_stage_model|text_encoders|first_stage_model|vae)\./,
  ],
  [
    "transformer",
    "a diffusion transformer",
    /^(model\.diffusion_model\.)?(double_blocks|single_blocks|joint_blocks|single_transformer_blocks)\.|^transformer_blocks\.\d+\.(attn\.add_|norm1_context)/,
  ],
  ["unet", "a UNet with diffusers' names", /^(add_embedding\.linear_1|mid_block\.attentions\.0\.proj_in)\./],
  ["unet", "a UNet with the names of checkpoints", /^(model\.diffusion_model\.)?input_blocks\.0\.0\./],
  [
    "tiny-vae",
    "a tiny VAE (TAESD)",
    /^((taesd_)?(en|de)coder\.(layers\.)?\d+\.(conv\.0\.)?weight|\d+\.conv\.0\.weight)$/,
  ],
  ["vae", "a VAE", /^(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid_block|mid|up)\./],
  ["text-encoder", "a text encoder", /^text_model\.encoder\.layers\./],
  ["text-encoder", "a text encoder with OpenCLIP's names", /^transformer\.resblocks\./],
  ["text-encoder", "a T5 text encoder", /^(encoder\.block\.0\.layer|shared\.weight$)/],
  ["image-encoder", "an image encoder", /^vision_model\.encoder\.layers\./],
  ["embedding", "an embedding (textual inversion)", /^(emb_params|clip_[lg]|string_to_param\b.*)$/],
] as const satisfies readonly (readonly [string, string, ...RegExp[]])[];

export type WeightKind = (typeof KINDS)[number][0] | "unknown";

export function weightKind(keys: Iterable<string>): WeightKind {
  return kindOf([...keys])?.[0] ?? "unknown";
}

function kindOf(keys: readonly string[]): (typeof KINDS)[number] | undefined {
  return KINDS.find(([, , ...patterns]) =>
    patterns.every((pattern: RegExp) => keys.some((key) => pattern.test(key))),
  );
}

/** A kind in words, with its article. */
export function kindText(kind: WeightKind): string {
  return KINDS.find(([name]) => name === kind)?.[1] ?? "nothing that is known";
}

type Shapes = ReadonlyMap<string, { shape: readonly number[] }>;

/** What a weights file is. */
export interface WeightContent {
  kind: WeightKind;
  /** In words, with its article: "a LoRA". */
  text: string;
  /** Model family of networks and LoRAs, where the shapes tell: "SDXL". */
  family?: string;
}

/** The family that is run here; smaller networks of its kind are of it. */
export const SDXL_FAMILY = "SDXL";

export function weightContent(entries: Shapes): WeightContent {
  const keys = [...entries.keys()];
  const [kind, text] = kindOf(keys) ?? ["unknown", kindText("unknown")];
  const family = familyOf(kind, entries, keys);
  return { kind, text, ...(family === undefined ? {} : { family }) };
}

function familyOf(kind: WeightKind, entries: Shapes, keys: readonly string[]): string | undefined {
  if (kind === "unet" || kind === "checkpoint" || kind === "transformer")
    return transformerFamily(keys) ?? unetFamily(entries, keys);
  return kind === "lora" ? (transformerFamily(keys) ?? loraFamily(entries, keys)) : undefined;
}

function transformerFamily(keys: readonly string[]): string | undefined {
  const has = (pattern: RegExp) => keys.some((key) => pattern.test(key));
  if (has(/(^|[._])(double_blocks|single_transformer_blocks|single_blocks)[._]/)) return "Flux";
  if (has(/(^|[._])joint_blocks[._]|[._](attn[._]add_[qkv]_proj|norm1_context)/)) return "SD 3";
  return undefined;
}

/** Families by the width of their text, where the UNet has no size conditioning. */
const TEXT_WIDTHS: Readonly<Record<number, string>> = { 768: "SD 1.x", 1024: "SD 2.x" };

function unetFamily(entries: Shapes, keys: readonly string[]): string | undefined {
  const size = (pattern: RegExp, axis: number) =>
    entries.get(keys.find((key) => pattern.test(key)) ?? "")?.shape[axis];
  const first = /(^|\.)(input_blocks\.0\.0|conv_in)\.weight$/;
  const unetKey = (key: string) => !/^(first_stage_model|encoder|decoder)\./.test(key);
  const conv = keys.find((key) => first.test(key) && unetKey(key));
  const input = conv === undefined ? undefined : entries.get(conv)!.shape;
  const output = size(/^(model\.diffusion_model\.out\.2|out\.2|conv_out)\.weight$/, 0);
  if (!input) return undefined;
  const text = size(/\.attn2\.to_k\.weight$/, 1) ?? 0;
  const sized = keys.some((key) => /(^|\.)(label_emb\.0\.0|add_embedding\.linear_1)\.weight$/.test(key));
  if (keys.some((key) => /(^|\.)encoder_hid_proj\./.test(key))) return "Kolors";
  if (keys.includes("edm_mean")) return "Playground v2.5";
  if (keys.some((key) => key.startsWith("edm_vpred."))) return "CosXL";
  const name = sized
    ? input[0] === 384 && text === 1280
      ? "the SDXL refiner"
      : SDXL_FAMILY
    : TEXT_WIDTHS[text];
  if (output !== undefined && input[1] === 2 * output + 1) return `${name ?? "SD"} inpainting`;
  if (output !== undefined && input[1] === 2 * output) return `${name ?? "SD"} for edits by instruction`;
  return name ?? "an older kind";
}

function loraFamily(entries: Shapes, keys: readonly string[]): string | undefined {
  const key = keys.find((k) => /attn2[._]to_k.*(lora_down|lora_A|lora\.down)/.test(k));
  const text = key === undefined ? undefined : entries.get(key)!.shape[1];
  return text === 2048 ? SDXL_FAMILY : text === undefined ? undefined : TEXT_WIDTHS[text];
}
