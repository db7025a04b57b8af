import fastify from "fastify";
import { expect, test } from "vitest";
import { page } from "../../src/serve/http/page.ts";
import { at, put } from "../data/temporary.ts";

test("files of the page, and none outside", async () => {
  put("web/index.html", "<title>fewstep</title>");
  put("secret.txt", "secret");
  const app = fastify();
  await app.register(page(at("web")));
  put("web/assets/page-1a2b.js", "");
  const { body, headers } = await app.inject("/");
  expect(body).toBe("<title>fewstep</title>");
  expect(headers["cache-control"]).toBe("no-cache");
  expect(headers["content-security-policy"]).toMatch(/default-src 'self';.*frame-ancestors 'self'/);
  expect((await app.inject("/assets/page-1a2b.js")).headers["cache-control"]).toContain("immutable");
  for (const url of ["/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt"])
    expect((await app.inject(url)).statusCode).toBeGreaterThanOrEqual(400);
});

test("without a page, the way to the documentation", async () => {
  const app = fastify();
  await app.register(page(at("nowhere")));
  expect((await app.inject("/")).headers.location).toBe("/docs");
});
