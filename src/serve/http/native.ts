/** @file Our own API: jobs, models, adapters. */

import type { FastifyRequest } from "fastify";
import type { FastifyPluginAsyncZod } from "fastify-type-provider-zod";
import { z } from "zod";
import { pictureSize } from "../catalogue.ts";
import { type Job, type JobEvent, madeBy, type PictureRequest } from "../jobs.ts";
import { Refusal } from "../refusal.ts";
import type { Backend } from "./backend.ts";
import { camelCased, snakeCased } from "./names.ts";
import { encode, encodeBase64, jsonSeed, pictureUrl, QUALITY, seedFrom } from "./pictures.ts";
import { errorBody, jobRequest, job as jobSchema, lora, model } from "./schemas.ts";
import { clientGone, type ServerEvent, sendEvents } from "./stream.ts";

const byId = z.object({ id: z.string() });
const file = { schema: z.custom<Buffer>().meta({ type: "string", format: "binary" }) };
const pictureFile = { content: { "image/png": file, "image/jpeg": file, "image/webp": file } };
const eventStream = { content: { "text/event-stream": { schema: z.string() } } };
const errors = { "4xx": errorBody, "5xx": errorBody };

export function nativeApi({ jobs, catalogue, onError }: Backend): FastifyPluginAsyncZod {
  return async (app) => {
    app.post(
      "/api/jobs",
      {
        schema: {
          summary: "Asks for pictures",
          description:
            "Answers at once with the job. With Accept: text/event-stream it answers with what happens to the job, as " +
            "/api/jobs/{id}/events does, and leaving cancels it.",
          body: jobRequest,
          response: { 200: eventStream, 202: jobSchema, ...errors },
        },
      },
      async (request, reply) => {
        const job = await jobs.submit(pictureRequest(request.body));
        reply.header("location", `/api/jobs/${job.id}`);
        if (!request.headers.accept?.includes("text/event-stream"))
          return reply.code(202).send(jobBody(request, job));
        const gone = clientGone(reply, () => void jobs.cancel(job.id));
        return sendEvents(reply, told(request, jobs.events(job.id, gone)), onError);
      },
    );

    app.get(
      "/api/jobs",
      {
        schema: { summary: "Jobs, newest first", response: { 200: z.object({ jobs: z.array(jobSchema) }) } },
      },
      async (request) => ({ jobs: (await jobs.list()).map((job) => jobBody(request, job)) }),
    );

    app.get(
      "/api/jobs/:id",
      { schema: { summary: "A job", params: byId, response: { 200: jobSchema, ...errors } } },
      async (request) => jobBody(request, found(await jobs.get(request.params.id))),
    );

    app.delete(
      "/api/jobs/:id",
      { schema: { summary: "Cancels a job", params: byId, response: { 200: jobSchema, ...errors } } },
      async (request) => jobBody(request, found(await jobs.cancel(request.params.id))),
    );

    app.get(
      "/api/jobs/:id/events",
      {
        schema: {
          summary: "What happens to a job, to its end",
          description:
            "Server-sent events: queued (position), started, progress (step, of, and a preview as a data URL where " +
            "some were asked for), then completed, failed or cancelled, with the job.",
          params: byId,
          response: { 200: eventStream, ...errors },
        },
      },
      async (request, reply) => {
        const { id } = found(await jobs.get(request.params.id));
        return sendEvents(reply, told(request, jobs.events(id, clientGone(reply))), onError);
      },
    );

    app.get(
      "/api/models",
      { schema: { summary: "Models", response: { 200: z.object({ models: z.array(model) }) } } },
      async () => ({
        models: [...catalogue.models.values()].map((described, i) => ({
          name: described.name,
          default: i === 0,
          ...pictureSize(described),
          multiple: described.vaeScaleFactor,
          steps: described.defaults.steps,
          guidance_scale: described.defaults.guidance,
          few_steps: [...described.fewSteps.counts],
          base: {
            steps: described.base.steps,
            guidance_scale: described.base.guidance,
            distilled: described.base.distilled,
          },
        })),
      }),
    );

    app.get(
      "/api/loras",
      {
        schema: {
          summary: "Adapters",
          response: { 200: z.object({ loras: z.array(lora) }) },
        },
      },
      async () => ({
        loras: [...catalogue.loras].map(([name, { sampling }]) => ({ name, steps: sampling?.steps })),
      }),
    );
  };
}

/** Pictures, whose URLs nobody can guess: browsers send no token for an image. */
export function pictureFiles({ jobs }: Backend): FastifyPluginAsyncZod {
  return async (app) => {
    app.get(
      "/api/jobs/:id/pictures/:file",
      {
        schema: {
          summary: "A picture as a file: 0.png, 0.jpeg or 0.webp, and so on",
          security: [],
          params: z.object({ id: z.string(), file: z.string() }),
          querystring: z.object({ quality: z.coerce.number().int().min(0).max(100).default(QUALITY) }),
          response: { 200: pictureFile, ...errors },
        },
      },
      async (request, reply) => {
        const { id, file } = request.params;
        const { pictures } = madeBy(finished(found(await jobs.get(id))));
        const [, i, format] = /^(\d{1,2})\.(png|jpeg|webp)$/.exec(file) ?? [];
        const asked = i === undefined ? undefined : pictures[Number(i)];
        if (!asked)
          throw new Refusal("not_found", `the job has ${pictures.length} pictures: 0.png, 0.jpeg, 0.webp, …`);
        const bytes = await encode(asked, format as "png" | "jpeg" | "webp", request.query.quality);
        return reply
          .type(`image/${format}`)
          .header("cache-control", "private, max-age=31536000, immutable")
          .send(Buffer.from(bytes));
      },
    );
  };
}

function pictureRequest(body: z.infer<typeof jobRequest>): PictureRequest {
  const { n: batch, guidanceScale: guidance, seed, loras, ...rest } = camelCased(body);
  return { ...rest, loras: loras.map(camelCased), batch, guidance, seed: seedFrom(seed) };
}

function jobBody(request: FastifyRequest, job: Job): z.infer<typeof jobSchema> {
  const { batch: n, guidance: guidance_scale, seed, loras, ...rest } = job.request;
  const { made, error } = job;
  const asked = {
    ...snakeCased(rest),
    loras: loras.map(snakeCased),
    n,
    guidance_scale,
    seed: jsonSeed(seed),
  };
  return {
    id: job.id,
    status: job.status,
    created_at: job.createdAt / 1000,
    started_at: job.startedAt && job.startedAt / 1000,
    finished_at: job.finishedAt && job.finishedAt / 1000,
    position: job.position,
    progress: job.step && { step: job.step.step, of: job.step.of },
    request: asked as z.infer<typeof jobSchema>["request"], // where lists may be written to
    pictures: (made?.pictures ?? []).map(({ width, height, settings }, i) => ({
      url: pictureUrl(request, job.id, i),
      width,
      height,
      seed: jsonSeed(settings.seed),
      steps: settings.steps,
      guidance_scale: settings.guidance,
      sampler: settings.sampler,
    })),
    warnings: [...(made?.warnings ?? [])],
    seconds: made && { ...made.seconds },
    error: error && { code: error.reason, message: error.message },
  };
}

async function* told(
  request: FastifyRequest,
  events: AsyncGenerator<JobEvent, void>,
): AsyncGenerator<ServerEvent, void> {
  for await (const event of events) {
    const { type } = event;
    if ("job" in event) yield { event: type, data: jobBody(request, event.job) };
    else if (type === "progress") {
      const { step, of, preview } = event;
      const url = preview && `data:image/webp;base64,${await encodeBase64(preview, "webp", 80)}`;
      yield { event: type, data: { step, of, preview: url } };
    } else yield { event: type, data: type === "queued" ? { position: event.position } : {} };
  }
}

function found(job: Job | undefined): Job {
  if (job) return job;
  throw new Refusal("not_found", "there is no such job, or it is forgotten: only the last ones are kept");
}

function finished(job: Job): Job {
  if (job.status !== "queued" && job.status !== "running") return job;
  throw new Refusal("not_found", `the job is ${job.status}; its pictures come when it is completed`);
}
