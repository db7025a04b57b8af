/** @file The HTTP side: both APIs behind their guards, their documentation, limits and numbers. */

import { randomUUID } from "node:crypto";
import { Socket } from "node:net";
import cors from "@fastify/cors";
import rateLimit, { type RateLimitPluginOptions } from "@fastify/rate-limit";
import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import fastify, { type FastifyInstance } from "fastify";
import {
  jsonSchemaTransform,
  jsonSchemaTransformObject,
  serializerCompiler,
} from "fastify-type-provider-zod";
import { version } from "../../platform/index.ts";
import { Refusal } from "../refusal.ts";
import type { Backend } from "./backend.ts";
import { answerGarbage, errorHandler, sendError, validatorCompiler } from "./errors.ts";
import { originGuard, tokenGuard } from "./guard.ts";
import { healthRoute } from "./health.ts";
import { BODY, CHECK, HEADERS, STUCK, TIMES } from "./limits.ts";
import type { Metrics } from "./metrics.ts";
import { nativeApi, pictureFiles } from "./native.ts";
import { openaiApi } from "./openai.ts";
import { page } from "./page.ts";
import { runsApi } from "./runs.ts";

export interface AppOptions {
  /** Address that is listened on. */
  host: string;
  /** Wanted of those who ask for pictures; default none. */
  token?: string;
  /** Origins, such as "https://example.org", whose pages may use the server; default none but its own. */
  cors?: readonly string[];
  /** Requests of one address in a minute; default any. */
  rateLimit?: number;
  /** Folder with the files of the page; default those that come with the package. */
  page?: string;
}

export async function buildApp(
  backend: Backend,
  metrics: Metrics,
  { host, token, cors: origins = [], rateLimit: most, page: folder }: AppOptions,
): Promise<FastifyInstance> {
  const { headersTimeout, ...times } = TIMES;
  const app = fastify({
    ...times,
    bodyLimit: BODY,
    http: { maxHeaderSize: HEADERS, headersTimeout, connectionsCheckingInterval: CHECK },
    routerOptions: { maxParamLength: 200 },
    genReqId: () => randomUUID(),
    forceCloseConnections: "idle",
    return503OnClosing: false, // the answers say it themselves
    clientErrorHandler: answerGarbage,
    frameworkErrors: (_, __, reply) => sendError(new Refusal("invalid_value", "the URL is malformed"), reply),
  });
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
  const exposedHeaders = ["x-request-id", "retry-after", "location"];
  const methods = ["GET", "HEAD", "POST", "DELETE"];
  await app.register(cors, { origin: [...origins], methods, exposedHeaders });
  if (most !== undefined) await app.register(rateLimit, requestsInAMinute(most));

  await describe(app, token);
  await app.register(healthRoute(backend));
  await app.register(async (guarded) => {
    if (token !== undefined) guarded.addHook("onRequest", tokenGuard(token));
    await guarded.register(openaiApi(backend));
    await guarded.register(nativeApi(backend));
    await guarded.register(runsApi(backend.runs));
    metrics.serve(guarded);
  });
  await app.register(pictureFiles(backend));
  await app.register(page(folder));
  await app.ready();
  return app;
}

function requestsInAMinute(max: number): RateLimitPluginOptions {
  return {
    max,
    timeWindow: "1 minute",
    errorResponseBuilder: (_, { ttl }) =>
      new Refusal("rate_limit_exceeded", `more than ${max} requests in a minute; wait`, {
        retryAfter: ttl / 1000,
      }),
  };
}

/** The OpenAPI document, made of the routes that are registered from now on, and a page to read it. */
async function describe(app: FastifyInstance, token?: string): Promise<void> {
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
}
