/** @file The Images API of OpenAI, as its clients speak it, with steps, guidance, negative prompt and seed beside. */

import type { FastifyRequest } from "fastify";
import type { FastifyPluginAsyncZod } from "fastify-type-provider-zod";
import { z } from "zod";
import { type Job, type Jobs, type Made, madeBy, type PictureRequest } from "../jobs.ts";
import { Refusal } from "../refusal.ts";
import type { Backend } from "./backend.ts";
import { encodeBase64, type Format, jsonSeed, pictureUrl, QUALITY, seedFrom } from "./pictures.ts";
import { errorBody, imagesRequest, imagesResponse, openaiModel } from "./schemas.ts";
import { clientGone, type ServerEvent, sendEvents } from "./stream.ts";

type ImagesRequest = z.infer<typeof imagesRequest>;

export function openaiApi({ jobs, catalogue, onError }: Backend): FastifyPluginAsyncZod {
  const created = Math.floor(Date.now() / 1000);
  const listed = (id: string) => ({ id, object: "model" as const, created, owned_by: "fewstep" });
  return async (app) => {
    app.post(
      "/v1/images/generations",
      {
        schema: {
          summary: "Pictures of a prompt, as OpenAI's clients ask for them",
          body: imagesRequest,
          response: { 200: imagesResponse, "4xx": errorBody, "5xx": errorBody },
        },
      },
      async (request, reply) => {
        const { body } = request;
        const job = await jobs.submit(pictureRequest(body));
        const gone = clientGone(reply, () => void jobs.cancel(job.id));
        if (body.stream) return sendEvents(reply, streamed(jobs, job, body, gone), onError);
        const made = madeBy(await lastOf(jobs, job, gone));
        return {
          created: seconds(job),
          data: await dataOf(request, job, made, body),
          ...described(made, body),
        };
      },
    );

    app.post(
      "/v1/images/edits",
      {
        schema: { summary: "Not there yet", response: { 501: errorBody } },
        onRequest: async () => {
          throw new Refusal(
            "not_implemented",
            "pictures cannot be edited yet; /v1/images/generations makes new ones",
          );
        },
      },
      async () => {},
    );

    app.get(
      "/v1/models",
      {
        schema: {
          summary: "Models",
          response: { 200: z.object({ object: z.literal("list"), data: z.array(openaiModel) }) },
        },
      },
      async () => ({ object: "list" as const, data: [...catalogue.models.keys()].map(listed) }),
    );

    app.get(
      "/v1/models/:id",
      {
        schema: {
          summary: "A model",
          params: z.object({ id: z.string() }),
          response: { 200: openaiModel, 404: errorBody },
        },
      },
      async (request) => listed(catalogue.model(request.params.id).name),
    );
  };
}

function pictureRequest(body: ImagesRequest): PictureRequest {
  const [, width, height] = /^(\d+)x(\d+)$/.exec(body.size ?? "auto") ?? [];
  return {
    prompt: body.prompt,
    negativePrompt: body.negative_prompt ?? "",
    model: body.model ?? undefined,
    loras: [],
    batch: body.n ?? 1,
    steps: body.steps ?? undefined,
    guidance: body.guidance_scale ?? undefined,
    promptWeighting: body.prompt_weighting ?? undefined,
    clipSkip: body.clip_skip ?? undefined,
    seed: seedFrom(body.seed),
    ...(width !== undefined && { width: Number(width), height: Number(height) }),
    previews: body.stream ? (body.partial_images ?? 0) : 0,
    priority: 0,
  };
}

async function lastOf(jobs: Jobs, { id }: Job, gone: AbortSignal): Promise<Job> {
  for await (const event of jobs.events(id, gone)) if ("job" in event) return event.job;
  throw new Error(`job ${id} has no end`);
}

async function* streamed(
  jobs: Jobs,
  job: Job,
  body: ImagesRequest,
  gone: AbortSignal,
): AsyncGenerator<ServerEvent, void> {
  const named = (type: string, data: object): ServerEvent => ({ event: type, data: { type, ...data } });
  let partials = 0;
  for await (const event of jobs.events(job.id, gone)) {
    if (event.type === "progress" && event.preview)
      yield named("image_generation.partial_image", {
        b64_json: await encodeBase64(event.preview, ...formatOf(body)),
        partial_image_index: partials++,
        created_at: seconds(job),
        size: sizeOf(event.preview),
        ...common(body),
      });
    if (!("job" in event)) continue;
    const made = madeBy(event.job);
    for (const picture of made.pictures)
      yield named("image_generation.completed", {
        b64_json: await encodeBase64(picture, ...formatOf(body)),
        seed: jsonSeed(picture.seed),
        created_at: seconds(job),
        ...described(made, body),
        usage: NO_USAGE,
      });
  }
  yield { data: "[DONE]" };
}

/** Clients read it, but nothing is counted here. */
const NO_USAGE = {
  total_tokens: 0,
  input_tokens: 0,
  output_tokens: 0,
  input_tokens_details: { text_tokens: 0, image_tokens: 0 },
};

function dataOf(request: FastifyRequest, job: Job, made: Made, body: ImagesRequest) {
  return Promise.all(
    made.pictures.map(async (picture, i) => ({
      ...(body.response_format === "url"
        ? { url: pictureUrl(request, job.id, i, ...formatOf(body)) }
        : { b64_json: await encodeBase64(picture, ...formatOf(body)) }),
      seed: jsonSeed(picture.seed),
    })),
  );
}

function formatOf({ output_format, output_compression }: ImagesRequest): [Format, number] {
  return [output_format ?? "png", output_compression ?? QUALITY];
}

function common(body: ImagesRequest) {
  const [output_format] = formatOf(body);
  return { output_format, background: "opaque" as const, quality: body.quality ?? "auto" };
}

function described({ pictures: [first] }: Made, body: ImagesRequest) {
  return { size: sizeOf(first), ...common(body) };
}

function sizeOf({ width, height }: { width: number; height: number }): string {
  return `${width}x${height}`;
}

function seconds({ createdAt }: Job): number {
  return Math.floor(createdAt / 1000);
}
