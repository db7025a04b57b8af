/** @file `fewstep serve` as a process. */

import { once } from "node:events";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { parseBytes } from "../../src/cli/options.ts";
import { expectRefusal, fewstep, type Result, run } from "./run.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));

/** Serves the tiny model while `use` does something with it, then sends a signal. */
async function served(
  use: (url: string) => Promise<void>,
  { args = [], signal = "SIGTERM" }: { args?: string[]; signal?: NodeJS.Signals } = {},
): Promise<Result> {
  let used: Promise<void> | undefined;
  const result = await fewstep(["serve", "--model", `tiny=${TINY}`, "--port", "0", ...args], {
    started: (child) =>
      child.stdout?.once("data", (line) => {
        used = use(String(line).trim()).finally(() => child.kill(signal));
      }),
  });
  await used;
  return result;
}

type Json = { data: unknown[]; running: number; queued: number; error: { code: string } };
const json = async (answer: Response): Promise<Json> => (await answer.json()) as Json;

const ask = (url: string, path: string, body: object) =>
  fetch(url + path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json" },
  });

test.each(["SIGTERM", "SIGINT"] as const)("pictures until %s, then exit code 0", async (signal) => {
  const result = await served(
    async (url) => {
      expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
      const answer = await ask(url, "/v1/images/generations", { prompt: "a red apple", steps: 1 });
      expect((await json(answer)).data).toHaveLength(1);
    },
    { signal },
  );
  expect(result).toMatchObject({ code: 0, stderr: "" });
});

test("SIGTERM with jobs in hand: each is done or reported failed", async () => {
  const answers: Promise<Response>[] = [];
  const result = await served(async (url) => {
    for (let i = 0; i < 3; i++)
      answers.push(ask(url, "/v1/images/generations", { prompt: `${i}`, steps: 1000, guidance_scale: 1 }));
    for (;;) {
      const { running, queued } = await json(await fetch(`${url}/healthz`));
      if (running + queued === 3) return;
    }
  });
  expect(result).toMatchObject({ code: 0, stderr: "" });
  for (const answer of await Promise.all(answers)) {
    expect([200, 503]).toContain(answer.status);
    if (answer.status === 503) expect((await json(answer)).error.code).toBe("shutting_down");
  }
});

test("SIGTERM while it begins to listen ends it", async () => {
  const main = new URL("../../src/cli/main.ts", import.meta.url);
  const code = `
    import { Server } from "node:net";
    const { listen } = Server.prototype;
    Server.prototype.listen = function (...args) {
      process.emit("SIGTERM");
      return listen.apply(this, args);
    };
    process.argv = [process.execPath, "serve", "--model", ${JSON.stringify(TINY)}, "--port", "0"];
    await import(${JSON.stringify(main)});`;
  const result = await run(["--input-type=module", "--eval", code]);
  expect(result).toMatchObject({ code: 0, stderr: "" });
});

test("bad options are refused", async () => {
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  const { port } = taken.address() as { port: number };
  expectRefusal(
    await fewstep(["serve", "--model", TINY, "--port", String(port)]),
    /--port \d+: something else/,
  );
  taken.close();
  expectRefusal(await fewstep(["serve", "--model", "nowhere"]), /nowhere: no such folder/);
  expectRefusal(await fewstep(["serve", "--model", TINY, "--model", TINY]), /two are called tiny-sdxl/);
  expectRefusal(await fewstep(["serve", "--lora", `${TINY}/model_index.json`]), /model_index.json/);
  expectRefusal(await fewstep(["serve", "--cors", "*"]), /Give an origin/);
  expectRefusal(await fewstep(["serve", "--runs", "nowhere"]), /nowhere: no such folder/);
  expectRefusal(await fewstep(["serve"], { env: { FEWSTEP_TOKEN: "" } }), /FEWSTEP_TOKEN.*Give letters/);
  expectRefusal(await fewstep(["serve", "--memory-limit", "much"]), /Give a size/);
  expectRefusal(await fewstep(["serve", "--time-limit", "2200000"]), /Give a number from 0.1 to 2147483/);
});

test("sizes", () => {
  expect(["12", "1K", "800M", "4g", "1.5GiB", "2TB"].map(parseBytes)).toEqual([
    12,
    1024,
    800 * 2 ** 20,
    4 * 2 ** 30,
    1.5 * 2 ** 30,
    2 * 2 ** 40,
  ]);
});
