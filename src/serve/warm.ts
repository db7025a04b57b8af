/** @file Models that stay loaded; those that were used longest ago make room for others. */

import { SDXL } from "../pipelines/index.ts";
import type { LoadSpec, WorkerSetup } from "./protocol.ts";

/** Prompts of a model whose encoding is kept. */
const PROMPTS = 256;

export class WarmModels {
  private readonly setup: WorkerSetup;
  private readonly onNotice?: (sentence: string) => void;
  /** The last one was used last. */
  private readonly models = new Map<string, { sdxl: SDXL; bytes: number }>();

  /** @param onNotice is told what takes time while a model is loaded. */
  constructor(setup: WorkerSetup, onNotice?: (sentence: string) => void) {
    this.setup = setup;
    this.onNotice = onNotice;
  }

  async get({ key, path, steps, bytes }: LoadSpec): Promise<SDXL> {
    const warm = this.models.get(key);
    this.models.delete(key);
    const { device, precision, threads, memoryLimit } = this.setup;
    const needed = Math.max(bytes, warm?.bytes ?? 0);
    for (const oldest of [...this.models.keys()]) {
      if (this.bytes + needed <= memoryLimit) break;
      await this.unload(oldest);
    }
    const own = steps === undefined ? { loras: {} } : { steps };
    const how = { device, precision, threads, promptCache: PROMPTS, onNotice: this.onNotice };
    const sdxl = warm?.sdxl ?? (await SDXL.load(path, { ...how, ...own }));
    this.models.set(key, { sdxl, bytes: needed });
    return sdxl;
  }

  private get bytes(): number {
    return [...this.models.values()].reduce((sum, model) => sum + model.bytes, 0);
  }

  private async unload(key: string): Promise<void> {
    const model = this.models.get(key);
    this.models.delete(key);
    await model?.sdxl.dispose();
  }

  async dispose(): Promise<void> {
    for (const key of [...this.models.keys()]) await this.unload(key);
  }
}
