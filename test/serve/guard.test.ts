/** @file Who is let in, and what is too large, too slow or no request at all. */

import { once } from "node:events";
import { connect } from "node:net";
import { expect, test } from "vitest";
import { endless, post, tinyServer, until } from "./tiny.ts";

const start = endless;

test.each([
  [undefined, 401],
  ["Bearer wrong", 401],
  ["Bearer ", 401],
  ["Basic secret", 401],
  ["Bearer secret", 200],
  ["bearer secret", 200],
])("token: %s", async (authorization, status) => {
  const server = await tinyServer({ start, token: "secret" });
  const headers = authorization === undefined ? {} : { authorization };
  for (const url of ["/v1/models", "/api/jobs", "/api/models", "/metrics", "/%61pi/jobs", "//api/jobs"]) {
    const answer = await server.app.inject({ url, headers });
    expect([url, answer.statusCode]).toEqual([url, url.startsWith("//") ? 404 : status]);
    if (status === 401 && !url.startsWith("//")) {
      expect(answer.json().error.code).toBe("invalid_api_key");
      expect(answer.body).not.toContain("secret");
    }
  }
});

test("what a browser needs before it knows the token is open", async () => {
  const server = await tinyServer({ start, token: "secret" });
  for (const url of ["/healthz", "/openapi.json", "/docs/"])
    expect((await server.app.inject(url)).statusCode).toBe(200);
});

test("the token is looked at before the body is", async () => {
  const server = await tinyServer({ start, token: "secret" });
  expect((await post(server, "/api/jobs", "{nope")).statusCode).toBe(401);
});

test.each([
  ["https://evil.example", "localhost:7860", 403],
  ["null", "localhost:7860", 403],
  ["http://localhost:9999", "localhost:7860", 403],
  ["http://evil.example:7860", "evil.example:7860", 403], // a name that was made to lead here
  [undefined, "evil.example:7860", 403],
  ["http://localhost:7860", "localhost:7860", 200],
  ["http://127.0.0.1:7860", "127.0.0.1:7860", 200],
  ["http://[::1]:7860", "[::1]:7860", 200],
  [undefined, "localhost:7860", 200],
  ["https://friend.example", "localhost:7860", 200],
])("origin %s, host %s: %i", async (origin, host, status) => {
  const server = await tinyServer({ start, cors: ["https://friend.example"] });
  const headers = { host, ...(origin !== undefined && { origin }) };
  const answer = await server.app.inject({ url: "/api/models", headers });
  expect(answer.statusCode).toBe(status);
  if (status === 403) expect(answer.json().error.code).toBe("foreign_origin");
  const allowed = answer.headers["access-control-allow-origin"];
  expect(allowed).toBe(origin === "https://friend.example" ? origin : undefined);
});

test("a listed origin may ask before it asks", async () => {
  const server = await tinyServer({ start, cors: ["https://friend.example"] });
  const preflight = (origin: string) =>
    server.app.inject({
      method: "OPTIONS",
      url: "/api/jobs/1",
      headers: { origin, host: "localhost", "access-control-request-method": "DELETE" },
    });
  const { statusCode, headers } = await preflight("https://friend.example");
  expect([statusCode, headers["access-control-allow-methods"]]).toEqual([204, "GET, HEAD, POST, DELETE"]);
  expect((await preflight("https://evil.example")).statusCode).toBe(403);
});

test("a server with a public address answers to any name", async () => {
  const server = await tinyServer({ start, host: "0.0.0.0" });
  const answer = await server.app.inject({ url: "/api/models", headers: { host: "pictures.example" } });
  expect(answer.statusCode).toBe(200);
});

test("more requests than allowed: 429, and when to come again", async () => {
  const server = await tinyServer({ start, rateLimit: 2 });
  const codes = [];
  for (let i = 0; i < 3; i++) codes.push((await server.app.inject("/api/models")).statusCode);
  expect(codes).toEqual([200, 200, 429]);
  const answer = await server.app.inject("/api/models");
  expect(answer.headers["retry-after"]).toMatch(/^\d+$/);
  expect(answer.json().error.code).toBe("rate_limit_exceeded");
});

test.each<["GET" | "PUT", string, number]>([
  ["GET", "/nowhere", 404],
  ["GET", "/api/../../etc/passwd", 404],
  ["GET", "/docs/..%2f..%2f..%2fpackage.json", 404],
  ["PUT", "/api/jobs", 404],
  ["GET", "/api/jobs/%00", 404],
  ["GET", `/api/jobs/${"x".repeat(1000)}`, 400],
  ["GET", "/api/jobs/%zz", 400],
])("%s %s: %i", async (method, url, status) => {
  const { app } = await tinyServer({ start, page: "nowhere" }); // files of a page answer 404 to what no route takes
  const answer = await app.inject({ method, url });
  expect(answer.statusCode).toBe(status);
  expect(answer.json().error).toMatchObject({ type: "invalid_request_error" });
});

test("a body that is not JSON: 415", async () => {
  const answer = await post(await tinyServer({ start }), "/api/jobs", "prompt=x", {
    "content-type": "application/x-www-form-urlencoded",
  });
  expect([answer.statusCode, answer.json().error.code]).toEqual([415, "unsupported_media_type"]);
});

test.each([
  ["no request at all", "hello\r\n\r\n", 400],
  [
    "headers of 100,000 characters",
    `GET /api/models HTTP/1.1\r\nHost: localhost\r\nX: ${"x".repeat(100_000)}\r\n\r\n`,
    431,
  ],
])("%s", async (_, sent, status) => {
  const server = await tinyServer({ start });
  const socket = connect(Number(new URL(await server.listen()).port), "127.0.0.1");
  let received = "";
  socket.on("data", (data) => (received += data)).on("error", () => {});
  socket.write(sent);
  await once(socket, "close");
  const [head, body] = received.split("\r\n\r\n");
  expect(head).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  expect(JSON.parse(body).error.type).toBe("invalid_request_error");
  expect((await server.app.inject("/healthz")).statusCode).toBe(200);
});

test("a client that leaves takes its job along", async () => {
  const server = await tinyServer({ start });
  const url = await server.listen();
  const leave = new AbortController();
  const body = JSON.stringify({ prompt: "endless" });
  const headers = { "content-type": "application/json" };
  const answer = fetch(`${url}/v1/images/generations`, {
    method: "POST",
    body,
    headers,
    signal: leave.signal,
  });
  const jobs = async () => (await server.app.inject("/api/jobs")).json().jobs;
  await until(async () => (await jobs()).length > 0);
  leave.abort();
  await expect(answer).rejects.toThrow();
  await until(async () => (await jobs())[0].status === "cancelled");
  const { id } = (await post(server, "/api/jobs", { prompt: "short" })).json();
  await server.app.inject(`/api/jobs/${id}/events`);
  expect((await jobs())[0]).toMatchObject({ id, status: "completed" });
});
