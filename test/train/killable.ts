/**
 * @file Trains the tiny job in a process of its own, which kills itself at a place in its file operations:
 * `killable.ts <out> <replicas> [place:n[:part]]`, the n-th time it gets there, from 1. Prints each finished step.
 *
 *   write    half of the checkpoint's n-th part is in the temporary file (4 parts or more in each)
 *   rename   the temporary file is whole
 *   renamed  the checkpoint is in place, and nobody knows
 *   log      half of a line is in log.jsonl
 *   logged   the line is whole, the TensorBoard event is not written
 *   event    half of an event is written
 *   relog    log.jsonl is half rewritten
 */

import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import process from "node:process";

const [out, replicas, spec = "never:0"] = process.argv.slice(2);
const [place, count] = spec.split(":");
let left = Number(count);

/** Whether the process dies here. */
function dies(here: string): boolean {
  return here === place && --left === 0;
}
function die(): never {
  process.kill(process.pid, "SIGKILL");
  for (;;); // until the signal arrives
}
function half<T extends string | Uint8Array>(data: T): T {
  return data.slice(0, Math.ceil(data.length / 2)) as T;
}

const { appendFileSync, writeFileSync } = fs;
const { open, rename } = fs.promises;
fs.appendFileSync = (file, data, options) => {
  const here = String(file).endsWith(".jsonl") ? "log" : "event";
  const last = dies(here);
  appendFileSync(file, last ? half(data as string | Uint8Array) : data, options);
  if (last || (here === "log" && dies("logged"))) die();
};
fs.writeFileSync = (file, data, options) => {
  const last = /log\.jsonl/.test(String(file)) && dies("relog");
  writeFileSync(file, last ? half(data as string) : data, options);
  if (last) die();
};
fs.promises.open = async (...args) => {
  const handle = await open(...args);
  const { writeFile } = handle;
  if (/checkpoint\.safetensors\..*tmp$/.test(String(args[0])))
    handle.writeFile = async (data) => {
      const last = dies("write");
      await writeFile.call(handle, last ? half(data as Uint8Array) : data);
      if (last) die();
    };
  return handle;
};
fs.promises.rename = async (from, to) => {
  if (dies("rename")) die();
  await rename(from, to);
  if (dies("renamed")) die();
};
syncBuiltinESMExports();

await import("../../src/platform/node.ts");
const { fit: run } = await import("../../src/train/index.ts");
const { tinyFit } = await import("./tiny.ts");
for await (const { step } of run(...tinyFit(out, { replicas: Number(replicas) })))
  process.stdout.write(`${step}\n`);
