/**
 * @file `fewstep serve` under load: CLIENTS (64) ask for one picture each, again and again, for SECONDS (60). Before and after
 * it the same pipeline makes pictures without a server, on the same cores, because other work on the machine disturbs both
 * alike. The model is the bundled one, or MODEL, at its own step count, or STEPS.
 */

import process from "node:process";
import autocannon from "autocannon";
import { serve } from "../scripts/served.ts";
import { bundledModel, SDXL } from "../src/index.node.ts";
import { machine } from "./machine.ts";

const SECONDS = Number(process.env.SECONDS ?? 60);
const CLIENTS = Number(process.env.CLIENTS ?? 64);
const STEPS = process.env.STEPS === undefined ? undefined : Number(process.env.STEPS);
/** At memory and event loop while it runs. */
const LOOKS = 8;
const PROMPT = "a red apple";
/** Seconds between two looks of the server at its event loop: a delay of so much is none. */
const RESOLUTION = 0.01;

const model = process.env.MODEL ?? bundledModel();
await using sdxl = await SDXL.load(model, { steps: STEPS, promptCache: 1 });
const { defaults } = sdxl.info;
await using server = await serve("--model", `bench=${model}`, "--queue-limit", String(CLIENTS));
const url = `${server.url}/v1/images/generations`;
const body = JSON.stringify({ prompt: PROMPT, steps: STEPS });
const headers = { "content-type": "application/json" };

/** Pictures in a second, one after the other. */
async function bare(seconds: number): Promise<number> {
  const started = performance.now();
  let made = 0;
  let elapsed = 0;
  for (; elapsed < seconds; elapsed = (performance.now() - started) / 1000)
    await sdxl.textToImage(PROMPT, { steps: STEPS, seed: made++ });
  return made / elapsed;
}

/** Numbers of the server by name; looking at those of the event loop begins them anew. */
async function metrics(): Promise<Map<string, number>> {
  const text = await (await fetch(`${server.url}/metrics`)).text();
  return new Map([...text.matchAll(/^(\w+) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]));
}

await bare(1);
await fetch(url, { method: "POST", headers, body });
const before = await bare(Math.max(1, SECONDS / 4));
const looks = [await metrics()];
const look = setInterval(async () => looks.push(await metrics()), (1000 * SECONDS) / LOOKS);
const load = await autocannon({
  url,
  method: "POST",
  headers,
  body,
  connections: CLIENTS,
  duration: SECONDS,
  timeout: 600,
});
clearInterval(look);
looks.push(await metrics());
const after = await bare(Math.max(1, SECONDS / 4));

const alone = (before + after) / 2;
const served = load["2xx"] / load.duration;
const statuses = Object.entries(load.statusCodeStats ?? {}).filter(([status]) => !status.startsWith("2"));
const errors = [...statuses.map(([status, { count }]) => `${count} of status ${status}`)];
if (load.errors > 0) errors.push(`${load.errors} without an answer, ${load.timeouts} of them too late`);
const memory = looks.map((m) => Math.round((m.get("process_resident_memory_bytes") ?? 0) / 2 ** 20));
const lags = looks.slice(1).map((m) => (m.get("nodejs_eventloop_lag_p99_seconds") ?? 0) - RESOLUTION);

console.log(machine());
console.log(
  `${model}, ${STEPS ?? defaults.steps} steps; ${CLIENTS} clients for ${load.duration.toFixed(0)} s, one picture each time`,
);
console.log(
  `served       ${served.toFixed(1)} pictures/s, ${(served / alone).toFixed(2)} of the pipeline alone`,
);
console.log(
  `alone        ${alone.toFixed(1)} pictures/s (${before.toFixed(1)} before, ${after.toFixed(1)} after)`,
);
console.log(`answer       ${load.latency.p50} ms median, ${load.latency.p99} ms p99, waiting included`);
console.log(`errors       ${errors.join(", ") || "none"}`);
console.log(
  `event loop   p99 ${(1000 * Math.max(0, ...lags)).toFixed(1)} ms late, in the worst ${(SECONDS / LOOKS).toFixed(0)} s`,
);
console.log(`memory       ${memory.join(", ")} MiB, from start to end`);
