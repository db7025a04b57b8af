/** @file A thread that makes pictures, one request at a time, and keeps its models loaded. */

import { type MessagePort, parentPort, workerData } from "node:worker_threads";
import "../platform/node.ts";
import type { DenoiseStep, SDXL } from "../pipelines/index.ts";
import { SAMPLERS } from "../samplers/index.ts";
import type { PictureRequest } from "./jobs.ts";
import type { Reply } from "./pool.ts";
import type { Note, PictureResult, PictureTask, WorkerSetup } from "./protocol.ts";
import { Stop } from "./stop.ts";
import { WarmModels } from "./warm.ts";

const port = parentPort as MessagePort;
const models = new WarmModels(workerData as WorkerSetup, (notice) => say({ note: { notice } }));

async function paint(
  sdxl: SDXL,
  request: PictureRequest,
  { loras, stop: flag }: PictureTask,
): Promise<PictureResult> {
  const stop = new Stop(flag);
  const { prompt, sampler, previews, ...options } = request;
  const settings = { ...options, loras, sampler: sampler === undefined ? undefined : SAMPLERS[sampler] };
  const onStep = async (at: DenoiseStep): Promise<void> => {
    if (stop.requested) throw new Error("stopped");
    const preview = isPreviewed(at, previews) ? await at.preview() : undefined;
    say({ note: { step: at.i + 1, of: at.total, preview } });
  };
  const made = await sdxl.textToImage(prompt, { ...settings, onStep });
  return {
    pictures: made.map(({ settings, ...picture }) => ({ picture, settings })),
    warnings: sdxl.warnings(settings, prompt),
    seconds: { ...sdxl.timings },
  };
}

/** So many of the steps before the last, as evenly as can be. */
function isPreviewed({ i, total }: DenoiseStep, previews: number): boolean {
  if (i + 1 === total) return false;
  const count = Math.min(previews, total - 1);
  const before = (steps: number): number => Math.floor((steps * count) / (total - 1));
  return before(i + 1) > before(i);
}

function say(reply: Reply<Note, PictureResult | undefined>): void {
  port.postMessage(reply);
}

port.on("message", async (task: PictureTask | "close") => {
  try {
    if (task === "close") {
      await models.dispose();
      port.close();
      return;
    }
    const sdxl = await models.get(task.load);
    say({ result: task.request && (await paint(sdxl, task.request, task)) });
  } catch (error) {
    say({ error: error instanceof Error ? error.message : String(error) });
  }
});
