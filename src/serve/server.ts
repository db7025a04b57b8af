/** @file A server: a studio, its jobs, and their HTTP side. */

import type { FastifyInstance } from "fastify";
import { bundledModel } from "../pipelines/index.ts";
import { Catalogue } from "./catalogue.ts";
import { type AppOptions, buildApp } from "./http/app.ts";
import { Metrics } from "./http/metrics.ts";
import type { Job } from "./jobs.ts";
import { LocalJobs, type LocalJobsOptions } from "./local.ts";
import { Runs } from "./runs.ts";
import { PictureStudio, type StudioOptions } from "./studio.ts";

export interface ServeOptions
  extends StudioOptions,
    Partial<Pick<LocalJobsOptions, "queueLimit" | "timeLimit" | "history" | "onError">>,
    Partial<AppOptions> {
  /** Folders or files by name, the default first; default the bundled model. */
  models?: Readonly<Record<string, string>>;
  /** LoRA files by name. */
  loras?: Readonly<Record<string, string>>;
  /** Folder of more, named after their files. */
  loraFolder?: string;
  /** Folder with training runs that may be looked at; default none. */
  runs?: string;
  /** Default 7860; 0 for any that is free. */
  port?: number;
}

export interface Server extends AsyncDisposable {
  readonly app: FastifyInstance;
  /** Gives the address. */
  listen(): Promise<string>;
  /** Running jobs have `grace` seconds to end, default 5; they and all others are then reported failed. */
  close(grace?: number): Promise<void>;
}

/**
 * Loads the models and builds a server, which does not listen yet.
 * @throws one sentence when a model cannot be loaded.
 */
export async function createServer(options: ServeOptions = {}): Promise<Server> {
  const { host = "127.0.0.1", port = 7860, queueLimit = 64, timeLimit = 300, onError = () => {} } = options;
  const { history = { jobs: 200, bytes: 256 * 2 ** 20 } } = options;
  const { models = { fewstep: bundledModel() }, loras = {}, loraFolder } = options;
  const catalogue = await Catalogue.open(models, loras, loraFolder);
  const runs = options.runs === undefined ? undefined : await Runs.open(options.runs);
  const studio = new PictureStudio(catalogue, options);
  const onEnd = (job: Job): void => metrics.count(job);
  const jobs: LocalJobs = new LocalJobs(studio, { queueLimit, timeLimit, history, onEnd, onError });
  const metrics = new Metrics(() => jobs.stats());
  try {
    await studio.warm();
  } catch (error) {
    await studio.close();
    throw error;
  }
  const app = await buildApp({ jobs, catalogue, runs, onError }, metrics, { ...options, host });

  const close = async (grace = 5): Promise<void> => {
    const late = setTimeout(() => app.server.closeAllConnections(), (grace + 1) * 1000);
    await Promise.all([jobs.close(grace), app.close()]);
    clearTimeout(late);
    await studio.close();
  };
  let closed: Promise<void> | undefined;
  const server: Server = {
    app,
    listen: () => app.listen({ host, port }),
    close(grace) {
      closed ??= close(grace);
      return closed;
    },
    [Symbol.asyncDispose]: () => server.close(),
  };
  return server;
}
