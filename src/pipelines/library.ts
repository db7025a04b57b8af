/** @file Adapters of a model, matched with its networks, and kept for the next pictures. */

import { stat } from "node:fs/promises";
import { LRUCache } from "lru-cache";
import { type LoadedLora, loadLora, type PartShapes } from "./adapters.ts";
import type { Components, Lora } from "./components.ts";
import { partShapes } from "./programs.ts";

/** Adapters whose tensors are kept. */
const KEPT = 8;

export class LoraLibrary {
  private readonly model: Components;
  private readonly loaded = new LRUCache<string, LoadedLora>({ max: KEPT });
  private known?: PartShapes;

  constructor(model: Components) {
    this.model = model;
  }

  private get shapes(): PartShapes {
    this.known ??= { text: partShapes("text", this.model), unet: partShapes("unet", this.model) };
    return this.known;
  }

  /** An adapter that becomes part of the weights. */
  place(lora: Lora): Promise<LoadedLora> {
    return loadLora(lora, this.model, this.shapes);
  }

  /** An adapter with its tensors; a file that is as it was is not read again. */
  async load(lora: Lora): Promise<LoadedLora> {
    const { mtimeMs, size } = await stat(lora.path);
    const version = JSON.stringify([lora.path, mtimeMs, size, lora.config]);
    const read = () => loadLora(lora, this.model, this.shapes, { whole: true, version });
    const loaded = this.loaded.get(version) ?? (await read());
    this.loaded.set(version, loaded);
    return { ...loaded, ...lora };
  }
}
