import { appendFileSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { Logs } from "../../src/train/logs.ts";
import { at, plain, put } from "../data/temporary.ts";
import { endless, tinyServer } from "./tiny.ts";

const get = async (url: string, options = {}) => {
  const server = await tinyServer({ start: endless, runs: at("runs"), ...options });
  return (next = url) => server.app.inject(next);
};
const phase = "lightning/8-4/1-conditional-lora";

test("runs, those in folders of others too, the last one first", async () => {
  put(`runs/${phase}/log.jsonl`, "");
  const logs = new Logs(at("runs/unet"), 0);
  logs.write({ step: 0, loss: 1 });
  put("runs/unet/recipe.json", '{"steps": 2500}');
  for (const name of ["samples-10.png", "samples-9.png", "samples-x.png", "other.png"])
    put(`runs/unet/${name}`, await plain("png"));
  put("runs/latents/latents.safetensors", "");
  put("elsewhere/log.jsonl", "");
  symlinkSync(at("elsewhere"), at("runs/link"));
  const ask = await get("/api/runs");
  const { runs, shown } = (await ask()).json();
  expect(shown).toBe(true);
  expect(runs.map(({ name }: { name: string }) => name).sort()).toEqual([phase, "unet"]);
  expect(runs.find(({ name }: { name: string }) => name === "unet")).toMatchObject({
    steps: 2500,
    samples: [9, 10],
    updated_at: expect.closeTo(Date.now() / 1000, -2),
  });
});

test("a log as it grows: rows from where the last part ended", async () => {
  const path = put(`runs/${phase}/log.jsonl`, '{"step":0,"loss":2.5}\n{"step":1,"lo');
  const ask = await get("");
  const log = async (from: number) =>
    (await ask(`/api/runs/${encodeURIComponent(phase)}/log?from=${from}`)).json();
  const first = await log(0);
  expect(first).toEqual({ rows: [{ step: 0, loss: 2.5 }], from: 0, next: 22, more: true });
  appendFileSync(path, 'ss":2}\n');
  expect(await log(first.next)).toEqual({ rows: [{ step: 1, loss: 2 }], from: 22, next: 42, more: false });
  expect((await log(42)).rows).toEqual([]);
  // a run that is resumed writes its log anew
  writeFileSync(path, '{"step":0,"loss":2.5}\n');
  expect(await log(42)).toMatchObject({ rows: [{ step: 0, loss: 2.5 }], from: 0, next: 22 });
  writeFileSync(path, '{"step":0,"loss":2.5,"grad_norm":1}\n{"step":9}\n');
  expect(await log(22)).toMatchObject({ rows: [{ step: 0 }, { step: 9 }], from: 0 });
});

test("long logs come in parts, and what is no row is left out", async () => {
  const lines = Array.from({ length: 20_000 }, (_, step) => JSON.stringify({ step, loss: 1 / (step + 1) }));
  const hostile = [
    '{"step":"x"}',
    "[1]",
    '{"step":1,"loss":{"a":1}}',
    "\0\0",
    '{"__proto__":{"step":1}}',
    "null",
  ];
  put("runs/a/log.jsonl", `${[...hostile, ...lines].join("\n")}\n`);
  const ask = await get("");
  const steps: number[] = [];
  for (let next = 0, more = true; more; ) {
    const part = (await ask(`/api/runs/a/log?from=${next}`)).json();
    steps.push(...part.rows.map((row: { step: number }) => row.step));
    ({ next, more } = part);
  }
  expect(steps).toEqual(lines.map((_, step) => step));
});

test("sample grids", async () => {
  const grid = await plain("png");
  put("runs/a/log.jsonl", "");
  put("runs/a/samples-500.png", grid);
  const ask = await get("/api/runs/a/samples/500");
  const { headers, rawPayload } = await ask();
  expect(headers["content-type"]).toBe("image/png");
  expect(rawPayload.equals(grid)).toBe(true);
  expect((await ask("/api/runs/a/samples/501")).json().error.message).toContain("no samples of step 501");
});

test.each(["..", "../a", "a/..", "a/../../secret", "/etc", ".", "", "a\0", "a/", "%2e%2e", "link", "C:\\a"])(
  "no run is called %j",
  async (name) => {
    put("secret/log.jsonl", '{"step":0}\n');
    put("runs/a/log.jsonl", '{"step":0}\n');
    mkdirSync(at("runs/b"));
    symlinkSync(at("secret"), at("runs/link"));
    const ask = await get("");
    for (const end of ["log", "samples/1"]) {
      const { statusCode, body } = await ask(`/api/runs/${encodeURIComponent(name)}/${end}`);
      expect([400, 404]).toContain(statusCode);
      expect(body).not.toContain(at());
    }
  },
);

test("steps and offsets that are none are refused", async () => {
  put("runs/a/log.jsonl", '{"step":0}\n');
  const ask = await get("");
  for (const url of ["/api/runs/a/samples/..%2f1", "/api/runs/a/log?from=-1", "/api/runs/a/log?from=x"])
    expect((await ask(url)).statusCode).toBe(400);
});

test("a server without runs says so", async () => {
  const ask = await get("/api/runs", { runs: undefined });
  expect((await ask()).json()).toEqual({ shown: false, runs: [] });
  expect((await ask("/api/runs/a/log")).json().error.message).toContain("--runs");
  await expect(get("", { runs: at("nowhere") })).rejects.toThrow(/no such folder/);
});

test("runs are behind the token", async () => {
  put("runs/a/log.jsonl", "");
  const ask = await get("/api/runs", { token: "secret" });
  expect((await ask()).statusCode).toBe(401);
});
