/** @file Errors as OpenAI's clients read them, for both APIs. */

import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import type { FastifyError, FastifyReply, FastifyRequest } from "fastify";
import type { z } from "zod";
import { quote } from "../../weights/index.ts";
import { type Reason, Refusal } from "../refusal.ts";
import { BODY, HEADERS, kibibytes } from "./limits.ts";
import type { errorBody } from "./schemas.ts";

const STATUS: Readonly<Record<Reason, number>> = {
  invalid_value: 400,
  invalid_json: 400,
  invalid_api_key: 401,
  foreign_origin: 403,
  model_not_found: 404,
  not_found: 404,
  method_not_allowed: 405,
  cancelled: 409,
  request_too_large: 413,
  unsupported_media_type: 415,
  rate_limit_exceeded: 429,
  queue_full: 429,
  internal_error: 500,
  generation_failed: 500,
  worker_died: 500,
  not_implemented: 501,
  shutting_down: 503,
  time_limit: 504,
};

/** What fastify refuses by itself. */
const FASTIFY: Readonly<Record<string, readonly [Reason, string]>> = {
  FST_ERR_CTP_INVALID_JSON_BODY: ["invalid_json", "the body is not valid JSON"],
  FST_ERR_CTP_EMPTY_JSON_BODY: ["invalid_json", "the body is empty; send a JSON object"],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: ["invalid_json", "the body is not as long as Content-Length says"],
  FST_ERR_CTP_INVALID_MEDIA_TYPE: [
    "unsupported_media_type",
    "send JSON, with Content-Type: application/json",
  ],
  FST_ERR_CTP_BODY_TOO_LARGE: [
    "request_too_large",
    `the body is too large; at most ${kibibytes(BODY)} are read`,
  ],
};

export type ErrorBody = z.infer<typeof errorBody>;

export function errorOf({ reason, message, param }: Refusal): ErrorBody {
  const status = STATUS[reason];
  const type = status === 429 ? "rate_limit_error" : status < 500 ? "invalid_request_error" : "server_error";
  return { error: { message, type, param: param ?? null, code: reason } };
}

/** Answers with an error object; nothing of the program's inside reaches the client. */
export function sendError(refusal: Refusal, reply: FastifyReply): FastifyReply {
  const { retryAfter } = refusal;
  if (retryAfter === undefined)
    reply.header("x-should-retry", "false"); // OpenAI's clients do, by default
  else reply.header("retry-after", Math.max(1, Math.ceil(retryAfter)));
  return reply
    .code(STATUS[refusal.reason])
    .type("application/json")
    .serializer(JSON.stringify)
    .send(errorOf(refusal));
}

/** Anything that was thrown, as something to say; undefined for mistakes in the program. */
function refusalOf(error: FastifyError | Error): Refusal | undefined {
  if (error instanceof Refusal) return error;
  const { code, statusCode } = error as FastifyError;
  if (Object.hasOwn(FASTIFY, code)) return new Refusal(...FASTIFY[code]);
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500)
    return new Refusal("invalid_value", "the request is malformed");
  return undefined;
}

export function internalError(): Refusal {
  return new Refusal("internal_error", "internal error; the server's log says more");
}

export function errorHandler(onError: (error: unknown) => void) {
  return (error: FastifyError | Error, _: FastifyRequest, reply: FastifyReply): FastifyReply => {
    const refusal = refusalOf(error);
    if (!refusal && error.name !== "AbortError") onError(error);
    return sendError(refusal ?? internalError(), reply);
  };
}

/** What Node's parser refuses before it is a request. */
const GARBAGE: Readonly<Record<string, readonly [status: number, Refusal]>> = {
  HPE_HEADER_OVERFLOW: [
    431,
    new Refusal("request_too_large", `the headers are too large; at most ${kibibytes(HEADERS)} are read`),
  ],
  ERR_HTTP_REQUEST_TIMEOUT: [408, new Refusal("invalid_value", "the request came in too slowly")],
};

export function answerGarbage({ code = "" }: Error & { code?: string }, socket: Socket): void {
  if (code === "ECONNRESET" || !socket.writable) return void socket.destroy();
  const [status, refusal] = GARBAGE[code] ?? [400, new Refusal("invalid_value", "this is no HTTP request")];
  const body = JSON.stringify(errorOf(refusal));
  const head = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    "Content-Type: application/json",
    `Content-Length: ${Buffer.byteLength(body)}`,
    "Connection: close",
  ];
  socket.end(`${head.join("\r\n")}\r\n\r\n${body}`);
}

/** Checks with zod; what is wrong is told in one sentence. */
export function validatorCompiler({ schema }: { schema: z.ZodType }) {
  return (given: unknown): { value: unknown } | { error: Refusal } => {
    const { data, error } = schema.safeParse(given);
    return error ? { error: refusalOfIssue(error.issues[0], given) } : { value: data };
  };
}

function refusalOfIssue(issue: z.core.$ZodIssue, given: unknown): Refusal {
  if (issue.code === "unrecognized_keys") {
    const param = [...issue.path, issue.keys[0]].join(".");
    return new Refusal("invalid_value", `${quote(param)} is not a field of this request`, { param });
  }
  const param = issue.path.join(".") || undefined;
  const value = issue.path.reduce<unknown>((o, k) => (o as Record<PropertyKey, unknown> | null)?.[k], given);
  const message = issue.message
    .replace("Invalid input: ", "")
    .replace(/^[A-Z](?=[a-z])/, (c) => c.toLowerCase());
  const what = value === undefined ? "missing" : `${quote(value)}: ${message}`;
  return new Refusal("invalid_value", `${param ?? "the body"} is ${what}`, { param });
}
