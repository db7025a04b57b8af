/** @file What a weights file holds, told from its keys. Names of files say nothing. */

/** In the order they are tried; a kind has some key like its pattern. */
const KINDS = [
  [
    "lora",
    "a LoRA",
    /[._](lora_(down|up|A|B)|lora(_linear_layer)?\.(down|up))\.|\.(hada_w1_a|lokr_w[12](_a)?|diff|w_norm)(\.|$)/,
  ],
  ["checkpoint", "a single-file checkpoint", /^model\.diffusion_model\./],
  ["unet", "a UNet with diffusers' names", /^(add_embedding\.linear_1|mid_block\.attentions\.0\.proj_in)\./],
  ["vae", "a VAE", /^(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid_block|mid|up)\./],
  ["text-encoder", "a text encoder", /^text_model\.encoder\.layers\./],
  ["image-encoder", "an image encoder", /^vision_model\.encoder\.layers\./],
] as const;

export type WeightKind = (typeof KINDS)[number][0] | "unknown";

export function weightKind(keys: Iterable<string>): WeightKind {
  const all = [...keys];
  return KINDS.find(([, , pattern]) => all.some((key) => pattern.test(key)))?.[0] ?? "unknown";
}

/** A kind in words, with its article. */
export function kindText(kind: WeightKind): string {
  return KINDS.find(([name]) => name === kind)?.[1] ?? "nothing that is known";
}
