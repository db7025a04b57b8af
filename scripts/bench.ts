/** @file Runs one benchmark by name: `npm run bench engine` runs `bench/engine.bench.ts`. */

import { readdirSync } from "node:fs";
import process from "node:process";

const SUFFIX = ".bench.ts";
const folder = new URL("../bench/", import.meta.url);
const names = readdirSync(folder)
  .filter((file) => file.endsWith(SUFFIX))
  .map((file) => file.slice(0, -SUFFIX.length));
const name = process.argv[2];

if (name !== undefined && names.includes(name)) {
  await import(new URL(`${name}${SUFFIX}`, folder).href);
} else {
  const what = name === undefined ? "Which benchmark?" : `There is no benchmark "${name}".`;
  console.error(`${what} Run one of: ${names.map((n) => `npm run bench ${n}`).join(", ") || "(none yet)"}`);
  process.exitCode = 2;
}
