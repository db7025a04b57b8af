/** @file The HTTP side: both APIs behind their guards, their documentation, limits and numbers. */

import { randomUUID } from "node:crypto";
import { STATUS_CODES } from "node:http";
import { Socket } from "node:net";
import cors from "@fastify/cors";
import rateLimit from "@fastify/rate-limit";
import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import fastify, { type FastifyInstance } from "fastify";
import {
  jsonSchemaTransform,
  jsonSchemaTransformObject,
  serializerCompiler,
  type ZodTypeProvider,
} from "fastify-type-provider-zod";
import { z } from "zod";
import { version } from "../../platform/index.ts";
import { Refusal } from "../refusal.ts";
import type { Backend } from "./backend.ts";
import { errorHandler, errorOf, sendError, validatorCompiler } from "./errors.ts";
import { originGuard, tokenGuard } from "./guard.ts";
import type { Metrics } from "./metrics.ts";
import { nativeApi, pictureFiles } from "./native.ts";
import { openaiApi } from "./openai.ts";
import { page } from "./page.ts";

export interface AppOptions {
  /** Address that is listened on. */
  host: string;
  /** Wanted of those who ask for pictures; default none. */
  token?: string;
  /** Origins, such as "https://example.org", whose pages may use the server; default none but its own. */
  cors?: readonly string[];
  /** Requests of one address in a minute; default any. */
  rateLimit?: number;
}

/** Bytes of a request's body. */
const BODY = 64 * 1024;
/** Bytes of a request's headers. */
const HEADERS = 16 * 1024;
/** Milliseconds in which a request must have come in whole, and its headers. */
const SLOWEST = { requestTimeout: 30_000, headersTimeout: 10_000, keepAliveTimeout: 5_000 };
/** Milliseconds that an answer may be stuck because nobody reads it. */
const STUCK = 60_000;

export async function buildApp(
  backend: Backend,
  metrics: Metrics,
  { host, token, cors: origins = [], rateLimit: most }: AppOptions,
): Promise<FastifyInstance> {
  const { requestTimeout, headersTimeout, keepAliveTimeout } = SLOWEST;
  const app = fastify({
    bodyLimit: BODY,
    requestTimeout,
    keepAliveTimeout,
    http: { maxHeaderSize: HEADERS, headersTimeout, connectionsCheckingInterval: 5_000 },
    genReqId: () => randomUUID(),
    forceCloseConnections: "idle",
    return503OnClosing: false, // the answers say it themselves
    clientErrorHandler: answerGarbage,
    frameworkErrors: (_, __, reply) => sendError(new Refusal("invalid_value", "the URL is malformed"), reply),
    routerOptions: { maxParamLength: 200 },
  }).withTypeProvider<ZodTypeProvider>();
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler(errorHandler(backend.onError));
  app.setNotFoundHandler(({ method, url }, reply) =>
    sendError(new Refusal("not_found", `there is no ${method} ${url.split("?")[0].slice(0, 100)}`), reply),
  );

  metrics.measure(app);
  app.addHook("onRequest", async ({ id }, reply) => {
    reply.header("x-request-id", id).header("x-content-type-options", "nosniff");
  });
  app.addHook("onRequest", originGuard(host, origins));
  app.addHook("onSend", async (_, { raw: { socket } }) => {
    if (socket instanceof Socket) socket.setTimeout(STUCK); // not one of `inject`
  });
  await app.register(cors, {
    origin: [...origins],
    exposedHeaders: ["x-request-id", "retry-after", "location"],
  });
  if (most !== undefined)
    await app.register(rateLimit, {
      max: most,
      timeWindow: "1 minute",
      errorResponseBuilder: (_, { ttl }) =>
        new Refusal("rate_limit_exceeded", `more than ${most} requests in a minute; wait`, {
          retryAfter: ttl / 1000,
        }),
    });

  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: { title: "fewstep", version: version(), description: "Text to pictures in few steps." },
      ...(token !== undefined && {
        components: { securitySchemes: { token: { type: "http", scheme: "bearer" } } },
        security: [{ token: [] }],
      }),
    },
    transform: jsonSchemaTransform,
    transformObject: jsonSchemaTransformObject,
  });
  await app.register(swaggerUi, {
    routePrefix: "/docs",
    staticCSP: "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'self'",
    uiConfig: { validatorUrl: null }, // the document stays here
  });
  app.get("/openapi.json", { schema: { hide: true } }, async () => app.swagger());
  app.get(
    "/healthz",
    {
      schema: {
        summary: "Whether the server takes jobs",
        security: [],
        response: { "2xx": health, 503: health },
      },
    },
    async (_, reply) => {
      const { closing, queued, running } = backend.jobs.stats();
      const status = closing ? ("closing" as const) : ("ok" as const);
      return reply.code(closing ? 503 : 200).send({ status, version: version(), queued, running });
    },
  );
  await app.register(async (guarded) => {
    if (token !== undefined) guarded.addHook("onRequest", tokenGuard(token));
    await guarded.register(openaiApi(backend));
    await guarded.register(nativeApi(backend));
    metrics.serve(guarded);
  });
  await app.register(pictureFiles(backend));
  await app.register(page());
  await app.ready();
  return app;
}

const health = z.object({
  status: z.enum(["ok", "closing"]),
  version: z.string(),
  queued: z.int(),
  running: z.int(),
});

/** What is no request, or too large or too slow a one, gets an error object as well. */
function answerGarbage({ code }: Error & { code?: string }, socket: Socket): void {
  if (code === "ECONNRESET" || !socket.writable) return void socket.destroy();
  const [status, refusal] =
    code === "HPE_HEADER_OVERFLOW"
      ? [
          431,
          new Refusal(
            "request_too_large",
            `the headers are too large; at most ${HEADERS / 1024} KiB are read`,
          ),
        ]
      : code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? [408, new Refusal("invalid_value", "the request came in too slowly")]
        : [400, new Refusal("invalid_value", "this is not an HTTP request")];
  const body = JSON.stringify(errorOf(refusal as Refusal));
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status as number]}\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  );
}
