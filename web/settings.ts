/** @file What a picture is made from, within what the server offers; to a request, and back from a picture's file. */

import { parseParameters } from "../src/platform/parameters.ts";
import { readPng } from "../src/platform/png.ts";
import type { JobRequest, Model } from "./server.ts";

export interface Lora {
  name: string;
  /** Steps that it was distilled for. */
  steps?: number;
}

export interface Offers {
  models: readonly Model[];
  loras: readonly Lora[];
}

export interface Settings {
  prompt: string;
  negativePrompt: string;
  model: string;
  steps: number;
  guidance: number;
  /** Decimal digits: JavaScript's numbers end at 2^53, seeds at 2^64. */
  seed: string;
  /** Pixels. */
  width: number;
  /** Pixels. */
  height: number;
  /** Pictures. */
  n: number;
  /** Strengths by name. */
  loras: Readonly<Record<string, number>>;
}

/** Pictures of one request; the server takes no more. */
export const MOST_PICTURES = 10;
export const MOST_STEPS = 1000;
/** Times the pixels that a model was trained at. */
const LARGEST = 4;

export function modelOf({ model }: Pick<Settings, "model">, { models }: Offers): Model {
  return models.find(({ name }) => name === model) ?? models[0];
}

/** A model's own settings around a prompt. */
export function settingsFor(model: Model, { prompt = "", seed = randomSeed() } = {}): Settings {
  return {
    prompt,
    negativePrompt: "",
    model: model.name,
    steps: model.steps,
    guidance: model.base.guidance_scale,
    seed,
    width: model.width,
    height: model.height,
    n: 1,
    loras: {},
  };
}

export function randomSeed(): string {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Step counts that have a network of their own, or an adapter that was made for them. */
export function fewSteps(settings: Settings, offers: Offers): number[] {
  const chosen = offers.loras.filter(({ name }) => Object.hasOwn(settings.loras, name));
  const counts =
    chosen.length > 0 ? chosen.flatMap(({ steps }) => steps ?? []) : modelOf(settings, offers).few_steps;
  return [...new Set(counts)].sort((a, b) => a - b);
}

/** Whether guidance has an effect: what was distilled carries it inside. */
export function isGuided(settings: Settings, offers: Offers): boolean {
  return !modelOf(settings, offers).base.distilled && !fewSteps(settings, offers).includes(settings.steps);
}

/** Sides that suit a model: its own, wider, taller, larger. */
export function sizesOf({ width, height, multiple }: Model): { width: number; height: number }[] {
  const scales = [
    [1, 1],
    [1.25, 0.8],
    [0.8, 1.25],
    [1.5, 1],
    [1, 1.5],
    [1.5, 1.5],
    [2, 2],
  ];
  const rounded = (side: number) => Math.max(1, Math.round(side / multiple)) * multiple;
  return scales.map(([x, y]) => ({ width: rounded(width * x), height: rounded(height * y) }));
}

export function jobRequest(settings: Settings, offers: Offers, previews = 0): JobRequest {
  const { prompt, negativePrompt, model, steps, guidance, seed, width, height, n, loras } = settings;
  const guided = isGuided(settings, offers);
  return {
    prompt,
    model,
    steps,
    seed,
    width,
    height,
    n,
    loras: Object.entries(loras).map(([name, strength]) => ({ name, strength })),
    previews: Math.min(previews, steps - 1),
    ...(guided && { guidance_scale: guidance }),
    ...(guided && guidance > 1 && { negative_prompt: negativePrompt }),
  };
}

/** The same for the same pictures. */
export function keyOf(settings: Settings, offers: Offers): string {
  return JSON.stringify(jobRequest(settings, offers));
}

/** Settings that the server can do; from storage or a file they may hold anything. */
export function fitted(wanted: { readonly [K in keyof Settings]?: unknown }, offers: Offers): Settings {
  const model = modelOf({ model: text(wanted.model) }, offers);
  const own = settingsFor(model);
  const { width, height } = sides(wanted, model) ?? own;
  const seed = text(wanted.seed);
  const loras = Object.entries((wanted.loras ?? {}) as Settings["loras"]).filter(
    ([name, strength]) => offers.loras.some((lora) => lora.name === name) && Number.isFinite(strength),
  );
  return {
    prompt: text(wanted.prompt),
    negativePrompt: text(wanted.negativePrompt),
    model: model.name,
    steps: within(wanted.steps, 1, MOST_STEPS, own.steps, true),
    guidance: within(wanted.guidance, 0, 100, own.guidance),
    seed: /^\d{1,20}$/.test(seed) && BigInt(seed) < 2n ** 64n ? seed : own.seed,
    width,
    height,
    n: within(wanted.n, 1, MOST_PICTURES, own.n, true),
    loras: Object.fromEntries(loras),
  };
}

function text(value: unknown): string {
  return typeof value === "string" ? value.replaceAll("\0", "").slice(0, 2000) : "";
}

function within(value: unknown, min: number, max: number, otherwise: number, whole = false): number {
  const fits =
    typeof value === "number" && value >= min && value <= max && (!whole || Number.isInteger(value));
  return fits ? value : otherwise;
}

function sides(
  { width, height }: { width?: unknown; height?: unknown },
  model: Model,
): { width: number; height: number } | undefined {
  const [w, h] = [Number(width), Number(height)];
  const fits = [w, h].every((side) => side > 0 && side % model.multiple === 0);
  return fits && w * h <= LARGEST * model.width * model.height ? { width: w, height: h } : undefined;
}

/** The text of a picture's file that tells its settings. @throws a sentence when it is no PNG, or tells none. */
export async function parametersOf(file: Blob): Promise<string> {
  const { texts } = await readPng(new Uint8Array(await file.arrayBuffer()));
  const found = texts.find(({ keyword }) => keyword === "parameters");
  if (!found) throw new Error("this picture does not tell its settings: it has no text called parameters");
  return found.text;
}

/** Settings from such a text, and what of it cannot be done here. */
export function settingsFrom(text: string, offers: Offers): { settings: Settings; notes: string[] } {
  const { prompt, negativePrompt, fields } = parseParameters(text);
  const field = (name: string) => fields.get(name);
  const number = (name: string) => (field(name) === undefined ? undefined : Number(field(name)));
  const [, width, height] = /^(\d{1,5})x(\d{1,5})$/.exec(field("Size") ?? "") ?? [];
  const loras = Object.fromEntries(
    [...(field("Loras") ?? "").matchAll(/([^,:]+): (-?\d+(?:\.\d+)?)/g)].map(([, name, strength]) => [
      name.trim(),
      Number(strength),
    ]),
  );
  const model = field("Model");
  const wanted = {
    prompt,
    negativePrompt,
    model,
    steps: number("Steps"),
    guidance: number("CFG scale"),
    seed: field("Seed"),
    width,
    height,
    n: 1,
    loras,
  };
  const settings = fitted(wanted, offers);
  const notes: string[] = [];
  const missing = Object.keys(loras).filter((name) => !Object.hasOwn(settings.loras, name));
  if (missing.length > 0) notes.push(`this server has no LoRA ${missing.join(", ")}`);
  if (
    model !== undefined &&
    !offers.models.some(({ name }) => model === name || model.startsWith(`${name}_`))
  )
    notes.push(`it was made with the model ${model}; ${settings.model} will draw it differently`);
  if (width !== undefined && (settings.width !== Number(width) || settings.height !== Number(height)))
    notes.push(`the model does not make ${width}×${height} pixels`);
  return { settings, notes };
}
