/** @file A server that plays the Hugging Face hub, and one that plays the CDN it sends large files to. */

import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import process from "node:process";
import { afterEach } from "vitest";

export const COMMIT = "c0ffee".padEnd(40, "0");
const REPO = "org/model";

/** What a file of the repository is at the server, and what is wrong with it. */
export interface Served {
  content: Buffer;
  /** In git's large file storage: listed with its SHA-256, sent by the CDN. */
  large: boolean;
}

export interface Seen {
  url: string;
  range?: string;
  authorization?: string;
  /** Whether the CDN was asked. */
  cdn: boolean;
  /** Bytes of content that were sent. */
  sent: number;
}

/** Takes a request over; false leaves it to the hub. */
type Interceptor = (request: IncomingMessage, response: ServerResponse, seen: Seen) => boolean;

export interface FakeHub {
  endpoint: string;
  files: Map<string, Served>;
  /** In the list of files, beside or instead of what is true. */
  listed: Record<string, unknown>[];
  /** All requests so far. */
  seen: Seen[];
  /** Those for the content of files. */
  contents(): Seen[];
  /** Looks at requests before the hub or the CDN does. */
  intercept?: Interceptor;
}

for (const name of ["http_proxy", "https_proxy", "no_proxy"])
  for (const key of [name, name.toUpperCase()]) delete process.env[key]; // those of whoever runs the tests

const open = new Set<Server>();
afterEach(() => {
  for (const server of open) {
    server.closeAllConnections();
    server.close();
  }
  open.clear();
});

/** A hub with the repository `org/model`, whose main branch and tag v1 are `COMMIT`. Large files have 1000 bytes or more. */
export async function fakeHub(files: Readonly<Record<string, string | Buffer>>): Promise<FakeHub> {
  const hub: FakeHub = {
    endpoint: "",
    files: new Map(
      Object.entries(files).map(([path, given]) => {
        const content = Buffer.from(given);
        return [path, { content, large: content.length >= 1000 }];
      }),
    ),
    listed: [],
    seen: [],
    contents: () => hub.seen.filter(({ sent }) => sent > 0),
  };
  const listen = async (cdn: boolean): Promise<string> => {
    const server = createServer((request, response) => {
      const { authorization, range } = request.headers;
      const seen: Seen = { url: request.url!, range, authorization, cdn, sent: 0 };
      hub.seen.push(seen);
      if (hub.intercept?.(request, response, seen)) return;
      if (cdn) sendFile(hub, decodeURIComponent(request.url!.slice(1)), request, response, seen);
      else answer(hub, cdnUrl, request, response, seen);
    });
    return listening(server);
  };
  const cdnUrl = await listen(true);
  hub.endpoint = await listen(false);
  return hub;
}

async function listening(server: Server): Promise<string> {
  open.add(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A proxy that forwards plain http, and lets tunnels through to nowhere. @param user `name:password` it wants, if any. */
export async function fakeProxy(
  user?: string,
): Promise<{ address: string; forwarded: string[]; tunnels: string[] }> {
  const forwarded: string[] = [];
  const tunnels: string[] = [];
  const isKnown = ({ headers }: IncomingMessage): boolean =>
    user === undefined || headers["proxy-authorization"] === `Basic ${Buffer.from(user).toString("base64")}`;
  const server = createServer((from, to) => {
    if (!isKnown(from)) return void to.writeHead(407).end();
    forwarded.push(from.url!);
    const { "proxy-authorization": _, ...headers } = from.headers;
    const onward = request(from.url!, { method: from.method, headers }, (response) => {
      to.writeHead(response.statusCode!, response.headers);
      response.pipe(to);
    });
    from.pipe(onward);
  });
  server.on("connect", (from, socket) => {
    tunnels.push(from.url!);
    socket.end(`HTTP/1.1 ${isKnown(from) ? "403 Forbidden" : "407 Who"}\r\n\r\n`);
  });
  return { address: await listening(server), forwarded, tunnels };
}

function answer(
  hub: FakeHub,
  cdnUrl: string,
  request: IncomingMessage,
  response: ServerResponse,
  seen: Seen,
): void {
  const { pathname } = new URL(request.url!, "http://hub");
  const api = new RegExp(`^/api/models/${REPO}/(revision|tree)/([^/]+)$`).exec(pathname);
  const file = new RegExp(`^/${REPO}/resolve/([^/]+)/(.+)$`).exec(pathname);
  const revision = decodeURIComponent(api?.[2] ?? file?.[1] ?? "");
  if (!api && !file) fail(response, 404, "RepoNotFound");
  else if (!["main", "v1", COMMIT].includes(revision)) fail(response, 404, "RevisionNotFound");
  else if (api) {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(api[1] === "revision" ? { id: REPO, sha: COMMIT } : listing(hub)));
  } else resolveFile(hub, decodeURIComponent(file![2]), cdnUrl, request, response, seen);
}

function resolveFile(
  hub: FakeHub,
  path: string,
  cdnUrl: string,
  request: IncomingMessage,
  response: ServerResponse,
  seen: Seen,
): void {
  const served = hub.files.get(path);
  if (!served) {
    fail(response, 404, "EntryNotFound");
    return;
  }
  response.setHeader("x-repo-commit", COMMIT);
  response.setHeader("x-linked-size", served.content.length);
  response.setHeader("x-linked-etag", `"${etag(served)}"`);
  if (served.large) response.writeHead(302, { location: `${cdnUrl}/${path}` }).end();
  else sendFile(hub, path, request, response, seen);
}

export function fail(response: ServerResponse, status: number, code?: string): void {
  if (code) response.setHeader("x-error-code", code);
  response.writeHead(status, { "content-type": "application/json" }).end('{"error":"no"}');
}

function listing(hub: FakeHub): Record<string, unknown>[] {
  const entries = [...hub.files].map(([path, served]) => {
    const { content, large } = served;
    const lfs = large ? { lfs: { oid: etag(served), size: content.length, pointerSize: 134 } } : {};
    return { type: "file", path, size: content.length, oid: gitHash(content), ...lfs };
  });
  const folders = new Set(entries.flatMap(({ path }) => /^(.+)\//.exec(path)?.[1] ?? []));
  const listed = hub.listed.map(({ path }) => path);
  return [
    ...[...folders].map((path) => ({ type: "directory", path, size: 0, oid: "0".repeat(40) })),
    ...entries.filter(({ path }) => !listed.includes(path)),
    ...hub.listed,
  ];
}

/** Honours ranges; HEAD gets headers alone. */
function sendFile(
  hub: FakeHub,
  path: string,
  { method, headers }: IncomingMessage,
  response: ServerResponse,
  seen: Seen,
): void {
  const { content } = hub.files.get(path)!;
  const start = Number(/^bytes=(\d+)-$/.exec(headers.range ?? "")?.[1] ?? 0);
  if (start >= content.length && start > 0) {
    response.writeHead(416, { "content-range": `bytes */${content.length}` }).end();
    return;
  }
  if (start > 0) {
    response.statusCode = 206;
    response.setHeader("content-range", `bytes ${start}-${content.length - 1}/${content.length}`);
  }
  response.setHeader("etag", `"${etag(hub.files.get(path)!)}"`);
  response.setHeader("content-length", content.length - start);
  if (method === "HEAD") response.end();
  else {
    seen.sent = content.length - start;
    response.end(content.subarray(start));
  }
}

/** As `sendFile`, but the connection ends after some bytes. */
export function sendAndCut(
  content: Buffer,
  [from, to]: readonly [number, number],
  response: ServerResponse,
  seen: Seen,
): void {
  seen.sent = to - from;
  response.writeHead(from > 0 ? 206 : 200, {
    "content-length": content.length - from,
    ...(from > 0 && { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` }),
  });
  response.write(content.subarray(from, to), () => response.destroy());
}

export function gitHash(content: Buffer): string {
  return createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");
}

export function etag({ content, large }: Served): string {
  return large ? createHash("sha256").update(content).digest("hex") : gitHash(content);
}
