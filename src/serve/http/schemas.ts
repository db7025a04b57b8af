/** @file What requests and answers look like. The same schemas check them and make the OpenAPI document. */

import { z } from "zod";
import { PROMPT_WEIGHTINGS, VAE_TILINGS } from "../../pipelines/index.ts";
import { SAMPLERS } from "../../samplers/index.ts";

/** Characters; models read 75 tokens at a time. */
const PROMPT = 2000;

/** NUL cannot be written into a PNG. */
const text = z
  .string()
  .max(PROMPT)
  .regex(/^[^\0]*$/, "leave out the NUL character");
const prompt = text.min(1, "give a text").describe("What the picture shows.");
const seed = z
  .union([z.int().min(0), z.string().regex(/^\d{1,20}$/)], "give a whole number from 0 to 2^64 - 1")
  .refine((value) => BigInt(value) < 2n ** 64n, "give a whole number from 0 to 2^64 - 1")
  .describe("Of the noise; picture i takes seed + i. Beyond 2^53 as text. Default: random.");

/** The wishes that both APIs know by these names. */
const wishes = {
  model: z.string().max(200).describe("A name from the list of models. Default: the first."),
  n: z.int().min(1).max(10).describe("Pictures."),
  negative_prompt: text.describe("What it should not show; needs a guidance scale above 1."),
  steps: z.int().min(1).max(1000).describe("Network evaluations. Default: the model's."),
  guidance_scale: z.number().min(0).max(100).describe("Up to 1 it is off. Default: the model's."),
  prompt_weighting: z
    .enum(PROMPT_WEIGHTINGS)
    .describe('How weights in prompts are read. Default: "comfy"; "none" also cuts long prompts.'),
  clip_skip: z.int().min(0).max(100).describe("Layers of the text encoders left out, as diffusers counts."),
};

const pair = z.tuple([z.int().min(0).max(65536), z.int().min(0).max(65536)]);
/** The names of diffusers. */
const sizes = {
  original_size: pair.optional().describe("Height and width that the model is told. Default: the picture's."),
  crops_coords_top_left: pair.optional().describe("Top and left. Default: [0, 0]."),
  target_size: pair.optional().describe("Height and width. Default: the picture's."),
  negative_original_size: pair.optional(),
  negative_crops_coords_top_left: pair.optional(),
  negative_target_size: pair.optional(),
};

const loraStrength = z.number().min(-100).max(100);
const side = z.int().min(1).max(8192).describe("Pixels. Default: the model's.");

export const jobRequest = z
  .strictObject({
    prompt,
    model: wishes.model.optional(),
    n: wishes.n.default(1),
    negative_prompt: wishes.negative_prompt.default(""),
    steps: wishes.steps.optional(),
    guidance_scale: wishes.guidance_scale.optional(),
    seed: seed.optional(),
    width: side.optional(),
    height: side.optional(),
    sampler: z.enum(Object.keys(SAMPLERS)).optional().describe("Default: the model's."),
    prompt_weighting: wishes.prompt_weighting.optional(),
    clip_skip: wishes.clip_skip.optional(),
    ...sizes,
    vae_tiling: z
      .enum(VAE_TILINGS)
      .optional()
      .describe('Decode by tiles. Default: "auto", where pictures are large.'),
    loras: z
      .array(
        z.strictObject({
          name: z.string().max(200),
          strength: loraStrength.default(1),
          text_strength: loraStrength.optional().describe("On the text encoders. Default: strength."),
        }),
      )
      .max(8)
      .default([])
      .describe("Adapters, names from the list of LoRAs. A prompt may name them as well: <lora:name:0.8>."),
    previews: z.int().min(0).max(100).default(0).describe("How many of the steps come with a preview."),
    priority: z.int().min(-10).max(10).default(0).describe("Higher ones are done first."),
    time_limit: z
      .number()
      .positive()
      .max(86400)
      .optional()
      .describe("Seconds of work. Default: the server's."),
  })
  .meta({ id: "JobRequest" });

/** Clients of OpenAI send null for what they leave out, and fields that mean nothing here. */
export const imagesRequest = z
  .object({
    prompt,
    model: wishes.model.nullish(),
    n: wishes.n.nullish(),
    size: z
      .string()
      .regex(/^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$/, 'give "auto" or pixels such as "64x64"')
      .nullish(),
    response_format: z.enum(["b64_json", "url"]).nullish(),
    output_format: z.enum(["png", "jpeg", "webp"]).nullish(),
    output_compression: z.int().min(0).max(100).nullish().describe("Quality of JPEG and WebP. Default: 100."),
    stream: z.boolean().nullish(),
    partial_images: z.int().min(0).max(3).nullish(),
    background: z.enum(["opaque", "auto"], 'pictures are opaque; give "opaque" or "auto"').nullish(),
    quality: z.enum(["auto", "low", "medium", "high", "standard", "hd"]).nullish().describe("No effect."),
    style: z.enum(["vivid", "natural"]).nullish().describe("No effect."),
    moderation: z.enum(["auto", "low"]).nullish().describe("No effect."),
    user: text.nullish().describe("No effect."),
    negative_prompt: wishes.negative_prompt.nullish(),
    steps: wishes.steps.nullish(),
    guidance_scale: wishes.guidance_scale.nullish(),
    prompt_weighting: wishes.prompt_weighting.nullish(),
    clip_skip: wishes.clip_skip.nullish(),
    seed: seed.nullish(),
  })
  .meta({ id: "ImagesRequest" });

export const errorBody = z
  .object({
    error: z.object({
      message: z.string(),
      type: z.string(),
      param: z.string().nullable(),
      code: z.string().nullable(),
    }),
  })
  .meta({ id: "Error" });

const seedOut = z.union([z.number(), z.string()]);

export const job = z
  .object({
    id: z.string(),
    status: z.enum(["queued", "running", "completed", "failed", "cancelled"]),
    created_at: z.number().describe("Seconds since 1970, as all times."),
    started_at: z.number().optional(),
    finished_at: z.number().optional(),
    position: z.int().optional().describe("Jobs before it."),
    progress: z.object({ step: z.int(), of: z.int() }).optional(),
    request: z.object({
      prompt: z.string(),
      negative_prompt: z.string(),
      model: z.string().optional(),
      n: z.int(),
      seed: seedOut,
      steps: z.int().optional(),
      guidance_scale: z.number().optional(),
      width: z.int().optional(),
      height: z.int().optional(),
      sampler: z.string().optional(),
      prompt_weighting: z.string().optional(),
      clip_skip: z.int().optional(),
      ...sizes,
      vae_tiling: z.string().optional(),
      loras: z.array(
        z.object({ name: z.string(), strength: z.number(), text_strength: z.number().optional() }),
      ),
      previews: z.int(),
      priority: z.int(),
      time_limit: z.number().optional(),
    }),
    pictures: z
      .array(
        z.object({
          url: z.string(),
          width: z.int(),
          height: z.int(),
          seed: seedOut,
          steps: z.int(),
          guidance_scale: z.number(),
          sampler: z.string(),
        }),
      )
      .describe("Empty until it is completed."),
    warnings: z.array(z.string()),
    seconds: z.record(z.string(), z.number()).optional().describe("Of each part of the work."),
    error: z.object({ code: z.string(), message: z.string() }).optional(),
  })
  .meta({ id: "Job" });

export const model = z
  .object({
    name: z.string(),
    default: z.boolean(),
    width: z.int(),
    height: z.int(),
    multiple: z.int().describe("Both sides of a picture are multiples of this."),
    steps: z.int(),
    guidance_scale: z.number(),
    few_steps: z.array(z.int()).describe("Step counts that have weights of their own."),
    base: z
      .object({ steps: z.int(), guidance_scale: z.number(), distilled: z.boolean() })
      .describe("The model's own network, for all other step counts; it may itself need few steps."),
  })
  .meta({ id: "Model" });

export const lora = z
  .object({
    name: z.string(),
    steps: z.int().optional().describe("That it was distilled for, where it makes a model need few."),
  })
  .meta({ id: "Lora" });

export const run = z
  .object({
    name: z.string(),
    updated_at: z.number(),
    steps: z.int().optional().describe("That it will have, where its recipe says so."),
    samples: z.array(z.int()).describe("Steps of its sample grids."),
  })
  .meta({ id: "Run" });

export const logPart = z
  .object({
    rows: z.array(z.record(z.string(), z.number())).describe("`step`, `loss`, and what else the run logs."),
    from: z.int().describe("Where they begin: 0 when the log was written anew meanwhile."),
    next: z.int().describe("Where the next part begins."),
    more: z.boolean().describe("Whether it is there already."),
  })
  .meta({ id: "LogPart" });

export const openaiModel = z
  .object({ id: z.string(), object: z.literal("model"), created: z.int(), owned_by: z.string() })
  .meta({ id: "OpenAIModel" });

export const imagesResponse = z
  .object({
    created: z.int(),
    data: z.array(z.object({ b64_json: z.string().optional(), url: z.string().optional(), seed: seedOut })),
    output_format: z.string(),
    size: z.string(),
    background: z.literal("opaque"),
    quality: z.string(),
  })
  .meta({ id: "ImagesResponse" });
