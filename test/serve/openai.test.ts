/** @file The unmodified client of OpenAI against a server with the tiny model. */

import OpenAI from "openai";
import sharp from "sharp";
import { describe, expect, test } from "vitest";
import { readPng } from "../../src/platform/index.ts";
import type { ServeOptions } from "../../src/serve/index.ts";
import { endless, post, tinyServer, until } from "./tiny.ts";

async function client(options: ServeOptions = {}): Promise<OpenAI> {
  const server = await tinyServer(options);
  return new OpenAI({ baseURL: `${await server.listen()}/v1`, apiKey: "key", maxRetries: 0 });
}

const bytes = (base64: string | undefined): Buffer => Buffer.from(base64 ?? "", "base64");

test("pictures as base64, with settings of ours beside", async () => {
  const openai = await client();
  const ask = {
    prompt: "a red lighthouse",
    n: 2,
    size: "32x64",
    steps: 2,
    seed: 7,
    guidance_scale: 1,
  } as const;
  const { data = [], ...rest } = await openai.images.generate(ask);
  expect(rest).toMatchObject({ size: "32x64", output_format: "png", background: "opaque" });
  expect(data).toHaveLength(2);
  const png = await readPng(bytes(data[1].b64_json));
  expect(png).toMatchObject({ width: 32, height: 64 });
  expect(png.texts[0].text).toContain("Steps: 2, Sampler: Euler, CFG scale: 1, Seed: 8");
  const again = await openai.images.generate(ask);
  expect(again.data?.[0].b64_json).toBe(data[0].b64_json);
});

test("pictures by URL, in other formats", async () => {
  const openai = await client({ token: "key" });
  const { data } = await openai.images.generate({
    prompt: "a red lighthouse",
    response_format: "url",
    output_format: "webp",
    quality: "hd",
    style: "vivid",
    moderation: "low",
    user: "someone",
  });
  const answer = await fetch(data?.[0].url ?? "");
  expect(answer.headers.get("content-type")).toBe("image/webp");
  expect(await sharp(await answer.arrayBuffer()).metadata()).toMatchObject({ format: "webp", width: 64 });
});

test.each([
  ["jpeg", 30],
  ["webp", 0],
  ["jpeg", undefined],
] as const)("a URL gives the same %s as base64 does, output_compression %s", async (format, quality) => {
  const server = await tinyServer();
  const body = { prompt: "x", steps: 1, seed: 1, output_format: format, output_compression: quality };
  const asked = async (response_format: string) =>
    (await post(server, "/v1/images/generations", { ...body, response_format })).json().data[0];
  const { pathname, search } = new URL((await asked("url")).url);
  const { rawPayload } = await server.app.inject(pathname + search);
  expect(rawPayload.equals(bytes((await asked("b64_json")).b64_json))).toBe(true);
  const plain = await server.app.inject(pathname);
  expect(plain.rawPayload.equals(rawPayload)).toBe(quality === undefined);
});

test("a stream with partial images", async () => {
  const openai = await client();
  const stream = await openai.images.generate({
    prompt: "a red lighthouse",
    stream: true,
    partial_images: 2,
    output_format: "jpeg",
    output_compression: 80,
  });
  const events = [];
  for await (const event of stream) events.push(event);
  expect(events.map(({ type }) => type)).toEqual([
    "image_generation.partial_image",
    "image_generation.partial_image",
    "image_generation.completed",
  ]);
  expect(events[1]).toMatchObject({ partial_image_index: 1, size: "64x64", output_format: "jpeg" });
  for (const { b64_json } of events)
    expect(await sharp(bytes(b64_json)).metadata()).toMatchObject({ format: "jpeg", width: 64 });
});

test("a stream that is cancelled leaves the server free for others", async () => {
  const openai = await client({ start: endless, queueLimit: 0 });
  const ask = () => openai.images.generate({ prompt: "x", stream: true });
  const first = await ask();
  await expect(ask()).rejects.toBeInstanceOf(OpenAI.RateLimitError);
  first.controller.abort();
  await until(async () => {
    const second = await ask().catch((error) => {
      expect(error).toBeInstanceOf(OpenAI.RateLimitError); // the first is not gone yet
    });
    second?.controller.abort();
    return second !== undefined;
  });
});

test("models", async () => {
  const openai = await client();
  const { data } = await openai.models.list();
  expect(data).toEqual([{ id: "tiny", object: "model", created: expect.any(Number), owned_by: "fewstep" }]);
  expect((await openai.models.retrieve("tiny")).id).toBe("tiny");
  await expect(openai.models.retrieve("../tiny")).rejects.toBeInstanceOf(OpenAI.NotFoundError);
});

describe("errors of the client's own kinds", () => {
  test("a wrong token", async () => {
    const openai = await client({ token: "another" });
    await expect(openai.models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
  });

  test("a model that is not there", async () => {
    const openai = await client();
    await expect(openai.images.generate({ prompt: "x", model: "dall-e-3" })).rejects.toMatchObject({
      status: 404,
      code: "model_not_found",
      param: "model",
      type: "invalid_request_error",
      message: '404 there is no model "dall-e-3"; there are tiny',
    });
  });

  test("edits", async () => {
    const openai = await client();
    const image = new File([new Uint8Array(100_000)], "a.png", { type: "image/png" });
    await expect(openai.images.edit({ prompt: "x", image })).rejects.toMatchObject({
      status: 501,
      code: "not_implemented",
    });
  });

  test("a job that fails in the middle of a stream", async () => {
    const openai = await client({ start: endless, timeLimit: 0.001 });
    const stream = await openai.images.generate({ prompt: "x", stream: true });
    await expect(async () => {
      for await (const _ of stream);
    }).rejects.toThrow(/took more than 0.001 s/);
  });
});

test.each<[object, string, string]>([
  [{}, "prompt is missing", "prompt"],
  [{ prompt: 5 }, "prompt is 5: expected string", "prompt"],
  [{ prompt: "" }, 'prompt is "": give a text', "prompt"],
  [{ prompt: "x".repeat(2001) }, "too big: expected string to have <=2000 characters", "prompt"],
  [{ prompt: "x", n: 11 }, "n is 11: too big: expected number to be <=10", "n"],
  [{ prompt: "x", n: 1.5 }, "n is 1.5: expected int", "n"],
  [{ prompt: "x", size: "big" }, 'size is "big": give "auto" or pixels such as "64x64"', "size"],
  [{ prompt: "x", size: "30x64" }, "size is 30x64; both sides must be multiples of 4; try 64x64", "size"],
  [{ prompt: "x", size: "1024x1024" }, "this model makes pictures of at most 16384 pixels", "size"],
  [{ prompt: "x", seed: -1 }, "seed is -1", "seed"],
  [{ prompt: "x", seed: "18446744073709551616" }, "give a whole number from 0 to 2^64 - 1", "seed"],
  [{ prompt: "x", background: "transparent" }, "pictures are opaque", "background"],
  [{ prompt: "x", stream: "yes" }, 'stream is "yes": expected boolean', "stream"],
])("bad input is refused: %j", async (body, message, param) => {
  const answer = await post(await tinyServer({ start: endless }), "/v1/images/generations", body);
  expect(answer.statusCode).toBe(400);
  expect(answer.headers["x-should-retry"]).toBe("false");
  expect(answer.json()).toEqual({
    error: {
      message: expect.stringContaining(message),
      type: "invalid_request_error",
      param,
      code: "invalid_value",
    },
  });
});

test("fields that are null or unknown are as if they were not there", async () => {
  const body = {
    prompt: "x",
    n: null,
    size: null,
    model: null,
    stream: null,
    seed: null,
    steps: 1,
    future: {},
  };
  expect((await post(await tinyServer(), "/v1/images/generations", body)).statusCode).toBe(200);
});
