/** @file Whether the server is well, for those who watch it. */

import type { FastifyPluginAsyncZod } from "fastify-type-provider-zod";
import { z } from "zod";
import { version } from "../../platform/index.ts";
import type { Backend } from "./backend.ts";

const health = z.object({
  status: z.enum(["ok", "closing"]),
  version: z.string(),
  queued: z.int(),
  running: z.int(),
});

export function healthRoute({ jobs }: Backend): FastifyPluginAsyncZod {
  const response = { 200: health, 503: health };
  return async (app) => {
    app.get(
      "/healthz",
      { schema: { summary: "Whether the server takes jobs", security: [], response } },
      async (_, reply) => {
        const { closing, queued, running } = jobs.stats();
        const status = closing ? "closing" : "ok";
        return reply.code(closing ? 503 : 200).send({ status, version: version(), queued, running });
      },
    );
  };
}
