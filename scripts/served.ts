/** @file A `fewstep serve` in a process of its own, as clients find it. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));

/** Gives its address, and ends with its owner. @throws when it cannot start; its stderr says why. */
export async function serve(...args: string[]): Promise<{ url: string } & AsyncDisposable> {
  const tsx = import.meta.resolve("tsx");
  const child = spawn(process.execPath, ["--import", tsx, MAIN, "serve", "--port", "0", ...args], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = once(child, "exit");
  const line = once(createInterface(child.stdout), "line");
  const [url] = await Promise.race([line, ended]);
  if (typeof url !== "string") throw new Error("fewstep serve did not start");
  return {
    url,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await ended;
    },
  };
}
