/** @file The page: the static files beside the program, where they are built; else the way to the documentation. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import fastifyStatic from "@fastify/static";
import type { FastifyPluginAsync } from "fastify";

const FOLDER = fileURLToPath(new URL("../../web", import.meta.url));

export function page(folder = FOLDER): FastifyPluginAsync {
  return async (app) => {
    if (existsSync(folder)) await app.register(fastifyStatic, { root: folder });
    else app.get("/", { schema: { hide: true } }, async (_, reply) => reply.redirect("/docs"));
  };
}
