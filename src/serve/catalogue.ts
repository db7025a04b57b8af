/** @file What a server can be asked for: models and adapters by name. Paths never come from a request. */

import { stat } from "node:fs/promises";
import { basename } from "node:path";
import {
  describeModel,
  loraFolder,
  loraTags,
  type ModelDescription,
  resolveTags,
  type SamplingSettings,
  samplingSettings,
} from "../pipelines/index.ts";
import { SAMPLERS } from "../samplers/index.ts";
import { quote, SafetensorsFile, weightKind } from "../weights/index.ts";
import type { PictureRequest } from "./jobs.ts";
import type { LoadSpec, PictureTask } from "./protocol.ts";
import { Refusal } from "./refusal.ts";

/** Pictures have at most so many times the pixels of those that the model was trained on. */
const LARGEST = 4;
/** Adapters of one request. */
const MOST_LORAS = 8;

export interface CatalogueModel extends ModelDescription {
  path: string;
}

interface Adapter {
  path: string;
  bytes: number;
  /** What its file says. */
  sampling?: SamplingSettings;
}

export class Catalogue {
  /** The first one is taken where none is named. */
  readonly models: ReadonlyMap<string, CatalogueModel>;
  readonly loras: ReadonlyMap<string, Adapter>;

  private constructor(models: Map<string, CatalogueModel>, loras: Map<string, Adapter>) {
    this.models = models;
    this.loras = loras;
  }

  /**
   * @param models and loras: paths by name; folder: of more adapters, named after their files.
   * @throws one sentence when one of them is not what it should be.
   */
  static async open(
    models: Readonly<Record<string, string>>,
    loras: Readonly<Record<string, string>>,
    folder?: string,
  ): Promise<Catalogue> {
    const described = new Map<string, CatalogueModel>();
    for (const [name, path] of Object.entries(models))
      described.set(name, { ...(await describeModel(path)), name, path });
    const adapters = new Map<string, Adapter>();
    for (const [name, path] of Object.entries(loras)) {
      const adapter = await adapterOf(path);
      if (!adapter) throw new Error(`${path}: not a LoRA`);
      adapters.set(name, adapter);
    }
    for (const [name, path] of folder === undefined ? [] : await loraFolder(folder)) {
      const adapter = adapters.has(name) ? undefined : await adapterOf(path);
      if (adapter) adapters.set(name, adapter);
    }
    return new Catalogue(described, adapters);
  }

  /** The model of that name, or the first. */
  model(name?: string): CatalogueModel {
    const first = this.models.values().next().value as CatalogueModel;
    const model = name === undefined ? first : this.models.get(name);
    if (model) return model;
    const known = [...this.models.keys()].join(", ");
    throw new Refusal("model_not_found", `there is no model ${quote(name)}; there are ${known}`, {
      param: "model",
    });
  }

  /** @throws Refusal of a request that the models here cannot do. */
  check(request: PictureRequest): void {
    const model = this.model(request.model);
    const { width, height } = pictureSize(model, request);
    const side = model.sampleSize * model.vaeScaleFactor;
    const most = LARGEST * side * side;
    const multiple = model.vaeScaleFactor;
    const refuse = (why: string): never => {
      throw new Refusal("invalid_value", `size is ${width}x${height}; ${why}; try ${side}x${side}`, {
        param: "size",
      });
    };
    if (width % multiple !== 0 || height % multiple !== 0)
      refuse(`both sides must be multiples of ${multiple}`);
    if (width * height > most) refuse(`this model makes pictures of at most ${most} pixels`);
    const { clipSkip = 0 } = request;
    if (clipSkip > model.mostClipSkip)
      throw new Refusal(
        "invalid_value",
        `clip_skip is ${clipSkip}; this model skips at most ${model.mostClipSkip}`,
        {
          param: "clip_skip",
        },
      );
    this.checkSteps(request, model);
  }

  /** By the sampler that will be used: the asked one, that of the adapters, or the model's. */
  private checkSteps(request: PictureRequest, model: CatalogueModel): void {
    const { load, loras = {} } = this.task(request);
    const adapters = [...this.loras.values()];
    const told: SamplingSettings = {};
    for (const path of Object.keys(loras))
      Object.assign(told, adapters.find((adapter) => adapter.path === path)?.sampling);
    const sampler = SAMPLERS[request.sampler ?? told.sampler ?? model.base.sampler.name];
    const steps = request.steps ?? told.steps ?? load.steps ?? model.base.steps;
    refused("steps", () => sampler.plan(model.scheduler, steps));
  }

  /** What is loaded for a request and what is painted. @throws Refusal of adapters that are not here. */
  task(request: PictureRequest): PictureTask {
    const { text, tags } = refused("prompt", () => loraTags(request.prompt));
    const asked = request.loras.map(({ name, strength, textStrength }) => ({
      name,
      strength: { unet: strength, text: textStrength ?? strength },
    }));
    const wanted = [...asked, ...tags];
    if (wanted.length > MOST_LORAS)
      throw new Refusal(
        "invalid_value",
        `${wanted.length} LoRAs are asked for; at most ${MOST_LORAS} go together`,
        {
          param: "loras",
        },
      );
    const paths = new Map([...this.loras].map(([name, { path }]) => [name, path]));
    const loras = refused("loras", () => resolveTags(wanted, paths));
    const bytes = [...this.loras.values()].reduce(
      (sum, lora) => sum + (lora.path in loras ? lora.bytes : 0),
      0,
    );
    const load = this.load(request, wanted.length > 0);
    return { load: { ...load, bytes: load.bytes + bytes }, request: { ...request, prompt: text }, loras };
  }

  /** @param adapted whether adapters go on it: on the model's own UNet. */
  load({ model: name, steps }: Pick<PictureRequest, "model" | "steps">, adapted = false): LoadSpec {
    const { path, bytes, fewSteps } = this.model(name);
    const { counts, usual } = fewSteps;
    const asked = steps ?? usual;
    const variant = !adapted && asked !== undefined && counts.includes(asked) ? asked : undefined;
    return { key: JSON.stringify([path, variant ?? "own"]), path, steps: variant, bytes };
  }
}

/** @throws Refusal that says what `f` throws. */
function refused<T>(param: string, f: () => T): T {
  try {
    return f();
  } catch (error) {
    throw new Refusal("invalid_value", (error as Error).message, { param });
  }
}

/** Undefined when the file is something else. */
async function adapterOf(path: string): Promise<Adapter | undefined> {
  await using file = await SafetensorsFile.open(path);
  if (weightKind(file.entries.keys()) !== "lora") return undefined;
  const { size: bytes } = await stat(path);
  return { path, bytes, sampling: samplingSettings(file.metadata, path) };
}

/** Pixels; those of the model where none are asked for. */
export function pictureSize(
  { sampleSize, vaeScaleFactor }: ModelDescription,
  { width, height }: Pick<PictureRequest, "width" | "height"> = {},
): { width: number; height: number } {
  const side = sampleSize * vaeScaleFactor;
  return { width: width ?? side, height: height ?? side };
}

/** `name=path`, or a path whose last part is the name. */
export function namedPath(text: string): [name: string, path: string] {
  const [, name, path] = /^([\w.-]+)=(.+)$/.exec(text) ?? [];
  return name === undefined ? [basename(text).replace(/\.safetensors$/, ""), text] : [name, path];
}
