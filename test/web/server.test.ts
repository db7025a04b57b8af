import { expect, onTestFinished, test, vi } from "vitest";
import { server } from "../../web/server.ts";

/** A body that breaks off. */
function broken(): Response {
  const start = (controller: ReadableStreamDefaultController): void => {
    controller.enqueue(new TextEncoder().encode('{"models": ['));
    controller.error(new TypeError("network error"));
  };
  return new Response(new ReadableStream({ start }));
}

/** A server that gives these answers; notes what it is asked. */
function answers(...given: Response[]): string[] {
  const asked: string[] = [];
  vi.stubGlobal("localStorage", { getItem: () => null });
  vi.stubGlobal("fetch", async (path: string) => {
    asked.push(path);
    return given.shift();
  });
  onTestFinished(() => void vi.unstubAllGlobals());
  return asked;
}

test("an answer that breaks off is asked for again when the server is back", async () => {
  const asked = answers(broken(), new Response("{}"), new Response('{"models": []}'));
  expect(await server.json("/api/models")).toEqual({ models: [] });
  expect(asked).toEqual(["/api/models", "/healthz", "/api/models"]);
});

test("an answer that is not JSON is told, and not asked for again", async () => {
  const asked = answers(new Response("<html>"));
  await expect(server.json("/api/models")).rejects.toThrow("the server's answer is not JSON");
  expect(asked).toEqual(["/api/models"]);
});
