/** @file Who may ask: addresses, origins of browser pages, and the token. */

import { createHash, timingSafeEqual } from "node:crypto";
import type { FastifyRequest } from "fastify";
import { Refusal } from "../refusal.ts";

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[?::1\]?)$/i;

export function isLoopback(host: string): boolean {
  return LOOPBACK.test(host);
}

/**
 * Refuses requests that a foreign page makes a browser send. A server on the loopback address also wants to be
 * called by a name of that: a foreign name that leads here is an attack (DNS rebinding).
 */
export function originGuard(host: string, allowed: readonly string[]) {
  const local = isLoopback(host);
  return async (request: FastifyRequest): Promise<void> => {
    const { origin } = request.headers;
    if (origin !== undefined && allowed.includes(origin)) return;
    if (origin !== undefined && hostOf(origin) !== request.host)
      throw new Refusal(
        "foreign_origin",
        "pages of other origins may not use this server; it can list them with --cors",
      );
    if (local && !isLoopback(request.hostname))
      throw new Refusal("foreign_origin", "this server answers to localhost only; --host makes it public");
  };
}

function hostOf(origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined;
}

/** Wants `Authorization: Bearer TOKEN`; the time it takes tells nothing about the token. */
export function tokenGuard(token: string) {
  const wanted = digest(token);
  return async (request: FastifyRequest): Promise<void> => {
    const [, given] = /^Bearer +(.+)$/i.exec(request.headers.authorization ?? "") ?? [];
    if (given === undefined || !timingSafeEqual(digest(given), wanted))
      throw new Refusal(
        "invalid_api_key",
        given === undefined
          ? "this server wants a token; send Authorization: Bearer TOKEN"
          : "the token is wrong",
      );
  };
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
