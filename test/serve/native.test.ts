import { availableParallelism } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test, vi } from "vitest";
import { readPng } from "../../src/platform/index.ts";
import { saveLora } from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";
import { randomLora, unetTensors } from "../pipelines/tiny.ts";
import { ended, endless, living, mortal, post, type Start, TINY, tinyServer, until } from "./tiny.ts";

/** Names and data of server-sent events. */
function eventsOf(body: string): [string, Record<string, unknown>][] {
  return [...body.matchAll(/event: (.*)\ndata: (.*)\n\n/g)].map(([, name, data]) => [name, JSON.parse(data)]);
}

/** Starts workers that get their requests when they are released. */
function held(): { start: Start; release(): void } {
  const waiting: (() => void)[] = [];
  const start: Start = (setup) => {
    const worker = living(setup);
    const post = worker.postMessage.bind(worker);
    worker.postMessage = (task) => (task.request ? waiting.push(() => post(task)) : post(task));
    return worker;
  };
  const release = (): void => {
    for (const post of waiting.splice(0)) post();
  };
  return { start, release };
}

test("a job from request to picture", async () => {
  const { start, release } = held();
  const server = await tinyServer({ start });
  const body = { prompt: "a red lighthouse", steps: 4, seed: "18446744073709551615", n: 2, previews: 1 };
  const asked = await post(server, "/api/jobs", body);
  expect(asked.statusCode).toBe(202);
  const { id, status } = asked.json();
  expect(status).toBe("running");
  expect(asked.headers.location).toBe(`/api/jobs/${id}`);

  const answer = await server.app.inject({ url: `/api/jobs/${id}/events`, payloadAsStream: true });
  let told = "";
  for await (const part of answer.stream()) {
    told += part;
    if (told.includes("event: started")) release(); // whoever follows later hears of the last step only
  }
  const events = eventsOf(told);
  expect(events.map(([name]) => name)).toEqual([
    "started",
    "progress",
    "progress",
    "progress",
    "progress",
    "completed",
  ]);
  const steps = events.slice(1, 5).map(([, data]) => data);
  expect(steps.map(({ step, of }) => `${step}/${of}`)).toEqual(["1/4", "2/4", "3/4", "4/4"]);
  expect(steps.map(({ preview }) => String(preview).slice(0, 16))).toEqual([
    "undefined",
    "undefined",
    "data:image/webp;",
    "undefined",
  ]);

  const job = await ended(server, id);
  expect(job).toMatchObject({ status: "completed", progress: { step: 4, of: 4 }, warnings: [] });
  expect(events[5][1]).toEqual(job);
  expect(job.pictures).toMatchObject([
    { width: 64, height: 64, seed: "18446744073709551615", steps: 4, sampler: "Euler" },
    { seed: 0 },
  ]);
  const file = await server.app.inject(new URL(job.pictures[1].url).pathname);
  expect(file.headers["content-type"]).toBe("image/png");
  expect(await readPng(file.rawPayload)).toMatchObject({ width: 64, height: 64 });
  for (const name of ["2.png", "0.gif", "..%2f0.png", "0"])
    expect((await server.app.inject(`/api/jobs/${id}/pictures/${name}`)).statusCode).toBe(404);

  expect((await server.app.inject(`/api/jobs/${id}/events`)).body).toMatch(/^:\n\nevent: completed\n/);
  expect((await server.app.inject("/api/jobs")).json().jobs).toEqual([job]);
});

test("a job asked for and followed in one request", async () => {
  const server = await tinyServer();
  const accept = { accept: "text/event-stream" };
  const answer = await post(server, "/api/jobs", { prompt: "x", steps: 2 }, accept);
  expect(answer.statusCode).toBe(200);
  const events = eventsOf(answer.body);
  expect(events.map(([name]) => name)).toEqual(["started", "progress", "progress", "completed"]);
  expect(answer.headers.location).toBe(`/api/jobs/${events[3][1].id}`);
  expect((await post(server, "/api/jobs", { prompt: "" }, accept)).json().error.param).toBe("prompt");
});

test("whoever leaves such a request cancels its job", async () => {
  const server = await tinyServer({ start: endless });
  const url = await server.listen();
  const leave = new AbortController();
  const answer = await fetch(`${url}/api/jobs`, {
    method: "POST",
    body: JSON.stringify({ prompt: "endless" }),
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    signal: leave.signal,
  });
  leave.abort();
  const job = answer.headers.get("location") as string;
  await until(async () => (await server.app.inject(job)).json().status === "cancelled");
});

test("what options may get wrong is told", async () => {
  const server = await tinyServer();
  const prompt = "many words ".repeat(100);
  const wishes = { negative_prompt: "x", guidance_scale: 1, steps: 1, prompt_weighting: "none" };
  const { id } = (await post(server, "/api/jobs", { prompt, ...wishes })).json();
  expect((await ended(server, id)).warnings).toEqual([
    expect.stringMatching(/^the prompt has more than \d+ tokens/),
    expect.stringMatching(/^a negative prompt has no effect/),
  ]);
});

test("how the prompt is read, and what the model is told", async () => {
  const server = await tinyServer();
  const plain = { prompt: "a (red:1.4) lighthouse", steps: 1, seed: 1 };
  const wishes = {
    prompt_weighting: "a1111",
    clip_skip: 1,
    original_size: [32, 48],
    negative_crops_coords_top_left: [1, 2],
    vae_tiling: "off",
  };
  const pictures = [];
  for (const body of [plain, { ...plain, ...wishes }]) {
    const { id } = (await post(server, "/api/jobs", body)).json();
    const job = await ended(server, id);
    expect(job).toMatchObject({ status: "completed", warnings: [], request: body });
    const { rawPayload } = await server.app.inject(new URL(job.pictures[0].url).pathname);
    pictures.push(await readPng(rawPayload));
  }
  const [{ text }] = pictures[1].texts;
  expect(text).toContain("Clip skip: 3, Prompt weighting: a1111, Original size: 48x32, Negative crops");
  const answer = await post(server, "/v1/images/generations", { prompt: "x", clip_skip: 2 });
  expect(answer.statusCode).toBe(400);
  expect(answer.json().error).toMatchObject({
    message: "clip_skip is 2; this model skips at most 1",
    param: "clip_skip",
  });
});

test("cancelled by DELETE: the job is dropped, later ones are done", async () => {
  const server = await tinyServer({ start: endless });
  const { id } = (await post(server, "/api/jobs", { prompt: "endless" })).json();
  const waiting = (await post(server, "/api/jobs", { prompt: "short" })).json();
  expect(waiting).toMatchObject({ status: "queued", position: 0 });
  const events = server.app.inject(`/api/jobs/${id}/events`);
  const cancelled = await server.app.inject({ method: "DELETE", url: `/api/jobs/${id}` });
  expect(cancelled.json()).toMatchObject({ id, status: "cancelled" });
  expect((await events).body).toMatch(/event: cancelled\n/);
  expect((await ended(server, waiting.id)).status).toBe("completed");
  expect((await server.app.inject(`/api/jobs/${id}/pictures/0.png`)).statusCode).toBe(409);
});

test("a worker that dies is replaced, and its job is done by the next", async () => {
  let started = 0;
  const server = await tinyServer({ start: (setup) => (started++ ? living(setup) : mortal(setup)) });
  const { id } = (await post(server, "/api/jobs", { prompt: "x", steps: 1 })).json();
  expect((await ended(server, id)).status).toBe("completed");
  expect((await server.app.inject("/metrics")).body).toMatch(/^fewstep_worker_deaths 1$/m);
});

test("a job that no worker survives fails, and the server goes on", async () => {
  let started = 0;
  const errors: unknown[] = [];
  const server = await tinyServer({
    start: (setup) => (started++ < 2 ? mortal(setup) : living(setup)),
    onError: (error) => errors.push(error),
  });
  const answer = await post(server, "/v1/images/generations", { prompt: "x", steps: 1 });
  expect(answer.statusCode).toBe(500);
  expect(answer.json().error).toMatchObject({ type: "server_error", code: "worker_died" });
  expect(errors).toHaveLength(1);
  expect((await post(server, "/v1/images/generations", { prompt: "x", steps: 1 })).statusCode).toBe(200);
});

test("several models and adapters by name; under the memory limit they make room for each other", async () => {
  const lora = at("ink.safetensors");
  await saveLora(lora, randomLora(await unetTensors()));
  const server = await tinyServer({
    models: { first: TINY, second: TINY },
    loras: { ink: lora },
    memoryLimit: 600_000, // one at a time, with its adapter
  });
  expect((await server.app.inject("/api/loras")).json()).toEqual({ loras: [{ name: "ink" }] });
  expect((await server.app.inject("/api/models")).json().models).toMatchObject([
    {
      name: "first",
      default: true,
      width: 64,
      height: 64,
      multiple: 4,
      steps: 30,
      few_steps: [],
      base: { steps: 30, distilled: false },
    },
    { name: "second", default: false },
  ]);
  const picture = async (more: object): Promise<Buffer> => {
    const asked = (await post(server, "/api/jobs", { prompt: "x", steps: 1, seed: 1, ...more })).json();
    expect(await ended(server, asked.id)).toMatchObject({ status: "completed" });
    return (await server.app.inject(`/api/jobs/${asked.id}/pictures/0.webp`)).rawPayload;
  };
  const plain = await picture({});
  const inked = await picture({ loras: [{ name: "ink", strength: 2 }] });
  expect(inked.equals(plain)).toBe(false);
  expect((await picture({ model: "second" })).equals(plain)).toBe(true);
});

test("a model beyond the memory limit is refused", async () => {
  await expect(tinyServer({ memoryLimit: 1000 })).rejects.toThrow(
    /has 1 MiB of weights; a worker may load 1 MiB/,
  );
  await expect(tinyServer({ models: { a: join(TINY, "unet") } })).rejects.toThrow(
    /no model_index.json there/,
  );
});

test.each<[object | string, number, string]>([
  ["{nope", 400, "the body is not valid JSON"],
  ["", 400, "the body is empty"],
  ['{"__proto__": {"prompt": "x"}}', 400, "the body is not valid JSON"],
  [[], 400, "the body is []: expected object"],
  [{ prompt: "a\0b" }, 400, "leave out the NUL character"],
  [{ prompt: "x", widht: 64 }, 400, '"widht" is not a field of this request'],
  [{ prompt: "x", loras: [{ name: 1 }] }, 400, "loras.0.name is 1: expected string"],
  [{ prompt: "x", loras: [{ name: "../ink" }] }, 400, 'there is no LoRA "../ink"; there are none'],
  [{ prompt: "x", sampler: "eular" }, 400, 'sampler is "eular"'],
  [{ prompt: "x", sampler: "lcm", steps: 60 }, 400, "steps is 60; the LCM and TCD samplers take"],
  [{ prompt: "x", sampler: "uni_pc", steps: 1000 }, 400, "steps is 1000; multistep samplers take"],
  [{ prompt: "x", prompt_weighting: "compel" }, 400, 'prompt_weighting is "compel"'],
  [{ prompt: "x", original_size: [64] }, 400, "original_size"],
  [{ prompt: "x", model: "../tiny-sdxl" }, 404, 'there is no model "../tiny-sdxl"; there are tiny'],
  [{ prompt: "x".repeat(10_000_000) }, 413, "the body is too large; at most 64 KiB are read"],
])("bad input is refused: %.60j", async (body, status, message) => {
  const answer = await post(await tinyServer({ start: endless }), "/api/jobs", body);
  expect(answer.json().error.message).toContain(message);
  expect(answer.statusCode).toBe(status);
});

test("a full queue: 429, and when to come again", async () => {
  const server = await tinyServer({ start: endless, queueLimit: 1 });
  const codes = [];
  for (let i = 0; i < 3; i++) codes.push((await post(server, "/api/jobs", { prompt: "x" })).statusCode);
  expect(codes).toEqual([202, 202, 429]);
  const answer = await post(server, "/v1/images/generations", { prompt: "x" });
  expect(answer.statusCode).toBe(429);
  expect(answer.headers["retry-after"]).toMatch(/^[1-9]\d*$/);
  expect(answer.json().error).toMatchObject({ type: "rate_limit_error", code: "queue_full" });
});

test("a job that takes too long: 504", async () => {
  const answer = await post(
    await tinyServer({ start: endless, timeLimit: 0.001 }),
    "/v1/images/generations",
    {
      prompt: "x",
    },
  );
  expect([answer.statusCode, answer.json().error.code]).toEqual([504, "time_limit"]);
});

test("of ended jobs only the last are known", async () => {
  const server = await tinyServer({ history: { jobs: 2, bytes: 1e6 } });
  const ids: string[] = [];
  for (let i = 0; i < 3; i++) {
    ids.push((await post(server, "/api/jobs", { prompt: "x", steps: 1 })).json().id);
    await ended(server, ids[i]);
  }
  const known = (await server.app.inject("/api/jobs")).json().jobs.map((job: { id: string }) => job.id);
  expect(known.sort()).toEqual(ids.slice(1).sort());
  expect((await server.app.inject(`/api/jobs/${ids[0]}`)).statusCode).toBe(404);
});

test("the OpenAPI document describes every route, from the schemas that check", async () => {
  const server = await tinyServer({ start: endless, token: "secret" });
  const document = (await server.app.inject("/openapi.json")).json();
  expect(document.openapi).toMatch(/^3\.1/);
  expect(Object.keys(document.paths).sort()).toEqual([
    "/api/jobs",
    "/api/jobs/{id}",
    "/api/jobs/{id}/events",
    "/api/jobs/{id}/pictures/{file}",
    "/api/loras",
    "/api/models",
    "/api/runs",
    "/api/runs/{name}/log",
    "/api/runs/{name}/samples/{step}",
    "/healthz",
    "/metrics",
    "/v1/images/edits",
    "/v1/images/generations",
    "/v1/models",
    "/v1/models/{id}",
  ]);
  const names = [...JSON.stringify(document).matchAll(/"#\/components\/schemas\/(\w+)"/g)].map(
    ([, name]) => name,
  );
  expect(Object.keys(document.components.schemas)).toEqual(expect.arrayContaining(names));
  expect(document.components.schemas.JobRequestInput).toMatchObject({
    required: ["prompt"],
    additionalProperties: false,
    properties: { prompt: { minLength: 1, maxLength: 2000 }, n: { minimum: 1, maximum: 10, default: 1 } },
  });
  expect((await server.app.inject("/docs/")).headers["content-type"]).toMatch(/^text\/html/);
});

test("small models are drawn by several threads at a time", async () => {
  const server = await tinyServer({ concurrency: undefined });
  const { body } = await server.app.inject("/metrics");
  expect(body.split("\n")).toContain(`fewstep_workers ${Math.min(4, availableParallelism())}`);
});

test("what takes time while models are loaded is told, and done once for all threads", async () => {
  vi.stubEnv("FEWSTEP_CACHE", at("cache"));
  onTestFinished(() => void vi.unstubAllEnvs());
  const notices: string[] = [];
  const onNotice = (sentence: string): number => notices.push(sentence);
  await tinyServer({ precision: "int8", concurrency: 2, onNotice });
  expect(notices.filter((sentence) => /int8 weights of the UNet are made once/.test(sentence))).toHaveLength(
    1,
  );
});

test("metrics in the format of Prometheus", async () => {
  const server = await tinyServer();
  await post(server, "/v1/images/generations", { prompt: "x", n: 2, steps: 1 });
  const { body, headers } = await server.app.inject("/metrics");
  expect(headers["content-type"]).toMatch(/^text\/plain; version=0.0.4/);
  for (const line of [
    'fewstep_jobs_total{status="completed"} 1',
    "fewstep_pictures_total 2",
    "fewstep_queued_jobs 0",
    "fewstep_running_jobs 0",
    "fewstep_workers 1",
    'fewstep_http_request_seconds_count{method="POST",route="/v1/images/generations",status="200"} 1',
  ])
    expect(body.split("\n")).toContain(line);
  for (const line of body.trim().split("\n"))
    expect(line).toMatch(/^(# (HELP|TYPE) \w+ .+|\w+(\{.*\})? \S+|)$/);
});
