/** @file Training runs, read only. */

import type { FastifyPluginAsyncZod } from "fastify-type-provider-zod";
import { z } from "zod";
import { Refusal } from "../refusal.ts";
import type { Runs } from "../runs.ts";
import { errorBody, logPart, run } from "./schemas.ts";

const byName = z.object({ name: z.string().describe('From the list; "/" in it as %2F.') });
const errors = { "4xx": errorBody, "5xx": errorBody };
const png = { schema: z.custom<Buffer>().meta({ type: "string", format: "binary" }) };

export function runsApi(runs: Runs | undefined): FastifyPluginAsyncZod {
  const known = (): Runs => {
    if (runs) return runs;
    throw new Refusal("not_found", "this server shows no training runs; --runs gives it their folder");
  };
  return async (app) => {
    app.get(
      "/api/runs",
      {
        schema: {
          summary: "Training runs, the last that went on first",
          response: {
            200: z.object({
              shown: z.boolean().describe("Whether the server was given a folder of runs."),
              runs: z.array(run),
            }),
          },
        },
      },
      async () => ({
        shown: runs !== undefined,
        runs: ((await runs?.list()) ?? []).map(({ updatedAt, ...rest }) => ({
          ...rest,
          updated_at: updatedAt / 1000,
        })),
      }),
    );

    app.get(
      "/api/runs/:name/log",
      {
        schema: {
          summary: "Rows of a run's log.jsonl from a byte on",
          params: byName,
          querystring: z.object({
            from: z.coerce.number().int().min(0).default(0).describe("`next` of the part before."),
          }),
          response: { 200: logPart, ...errors },
        },
      },
      async ({ params, query }) => known().log(params.name, query.from),
    );

    app.get(
      "/api/runs/:name/samples/:step",
      {
        schema: {
          summary: "A sample grid of a run",
          params: byName.extend({ step: z.coerce.number().int().min(0) }),
          response: { 200: { content: { "image/png": png } }, ...errors },
        },
      },
      async ({ params }, reply) =>
        reply.type("image/png").send(await known().samples(params.name, params.step)),
    );
  };
}
