/** @file The page: the static files beside the program, where they are built; else the way to the documentation. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import fastifyStatic from "@fastify/static";
import type { FastifyPluginAsync } from "fastify";

/** Beside the built program, or where the build puts it, seen from the sources. */
const FOLDERS = ["../../web", "../../../dist/web"].map((path) =>
  fileURLToPath(new URL(path, import.meta.url)),
);

/** Only from here, and pictures that the page itself holds; the component library sets styles on elements. */
const POLICY =
  "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; object-src 'none'; " +
  "base-uri 'none'; frame-ancestors 'self'";

export function page(folder = FOLDERS.find((path) => existsSync(path))): FastifyPluginAsync {
  return async (app) => {
    if (folder === undefined || !existsSync(folder))
      app.get("/", { schema: { hide: true } }, async (_, reply) => reply.redirect("/docs"));
    else await app.register(fastifyStatic, { root: folder, cacheControl: false, setHeaders });
  };
}

/** Names of assets hold a hash of what is in them. */
function setHeaders(reply: { setHeader(name: string, value: string): unknown }, path: string): void {
  const forever = /[\\/]assets[\\/]/.test(path);
  reply.setHeader("cache-control", forever ? "public, max-age=31536000, immutable" : "no-cache");
  if (path.endsWith(".html")) reply.setHeader("content-security-policy", POLICY);
}
