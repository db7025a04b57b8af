/** @file The tiny model with few-step weights, served with the page. */

import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { samplingMetadata } from "../../src/pipelines/index.ts";
import { createServer, type ServeOptions, type Server } from "../../src/serve/index.ts";
import { saveSafetensors } from "../../src/weights/index.ts";
import { TINY, unetTensors } from "../pipelines/tiny.ts";
import { waiting } from "../serve/tiny.ts";

/** Step counts that the model has weights for. */
export const COUNTS = [1, 4];

/** Writes the model to a folder: 30 guided steps of its own, or few without guidance. */
export async function fewStepModel(folder: string): Promise<void> {
  cpSync(TINY, folder, { recursive: true });
  const tensors = await unetTensors();
  const files: Record<string, string> = {};
  for (const steps of COUNTS) {
    files[steps] = `tiny_${steps}step_unet.safetensors`;
    const metadata = samplingMetadata({ steps, spacing: "trailing", guidance: 1 });
    await saveSafetensors(join(folder, files[steps]), tensors, metadata);
  }
  const path = join(folder, "model_index.json");
  const index = JSON.parse(readFileSync(path, "utf8"));
  const fewstep = { steps: 30, guidance: 5, lightning: { default: 4, files } };
  writeFileSync(path, JSON.stringify({ ...index, fewstep }));
}

/** A server of that model that listens. */
export async function served(
  model: string,
  page: string,
  options: ServeOptions = {},
): Promise<{ server: Server; url: string }> {
  const server = await createServer({
    models: { tiny: model },
    page,
    concurrency: 1,
    threads: 1,
    port: 0,
    ...options,
  });
  return { server, url: await listening(server) };
}

/** Waits for a port that someone else has for a moment. */
async function listening(server: Server): Promise<string> {
  for (;;)
    try {
      return await server.listen();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EADDRINUSE") throw error;
      await setTimeout(100);
    }
}

/** A worker that shows a preview at its seventh step, and goes no further. */
export const halfway = waiting(
  "{ step: 7, of: task.request.steps, preview: { width: 8, height: 8, data: new Uint8Array(3 * 64).fill(99) } }",
);
