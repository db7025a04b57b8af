/** @file Numbers for Prometheus. */

import type { FastifyInstance } from "fastify";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { z } from "zod";
import { hasEnded, type Job, type JobStats } from "../jobs.ts";

/** Seconds. */
const BUCKETS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300];

export class Metrics {
  private readonly registry = new Registry();
  private readonly jobs: Counter<"status">;
  private readonly pictures: Counter;
  private readonly waited: Histogram;
  private readonly worked: Histogram;
  private readonly requests: Histogram<"method" | "route" | "status">;

  constructor(stats: () => JobStats) {
    const registers = [this.registry];
    collectDefaultMetrics({ register: this.registry });
    const gauge = (name: string, help: string, value: (stats: JobStats) => number) =>
      new Gauge({
        name: `fewstep_${name}`,
        help,
        registers,
        collect() {
          this.set(value(stats()));
        },
      });
    gauge("queued_jobs", "Jobs that wait.", ({ queued }) => queued);
    gauge("running_jobs", "Jobs that are being done.", ({ running }) => running);
    gauge("workers", "Worker threads.", ({ workers }) => workers);
    gauge("worker_deaths", "Worker threads that died since the start.", ({ deaths }) => deaths);
    const histogram = <T extends string>(name: string, help: string, labelNames: readonly T[] = []) =>
      new Histogram({ name: `fewstep_${name}_seconds`, help, buckets: BUCKETS, labelNames, registers });
    this.waited = histogram("job_waiting", "From request to begin of a job.");
    this.worked = histogram("job_running", "From begin to end of a job.");
    this.requests = histogram("http_request", "From request to answer.", ["method", "route", "status"]);
    this.jobs = new Counter({
      name: "fewstep_jobs_total",
      help: "Ended jobs.",
      labelNames: ["status"],
      registers,
    });
    this.pictures = new Counter({ name: "fewstep_pictures_total", help: "Pictures made.", registers });
  }

  /** Counts a job that has ended. */
  count(job: Job): void {
    if (!hasEnded(job)) return;
    const { createdAt, startedAt, finishedAt = createdAt, made, status } = job;
    this.jobs.inc({ status });
    this.pictures.inc(made?.pictures.length ?? 0);
    this.waited.observe(((startedAt ?? finishedAt) - createdAt) / 1000);
    if (startedAt !== undefined) this.worked.observe((finishedAt - startedAt) / 1000);
  }

  /** Serves the numbers at /metrics. */
  serve(app: FastifyInstance): void {
    const response = { 200: { content: { "text/plain": { schema: z.string() } } } };
    app.get("/metrics", { schema: { summary: "Numbers for Prometheus", response } }, async (_, reply) =>
      reply.type(this.registry.contentType).send(await this.registry.metrics()),
    );
  }

  /** Measures all requests. */
  measure(app: FastifyInstance): void {
    app.addHook("onResponse", async (request, { statusCode, elapsedTime }) => {
      const labels = {
        method: request.method,
        route: request.routeOptions.url ?? "none",
        status: statusCode,
      };
      this.requests.observe(labels, elapsedTime / 1000);
    });
  }
}
