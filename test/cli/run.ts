/** @file Runs the command as a user does, in a process of its own. */

import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";

const { FEWSTEP_TEST_BUILT } = process.env;
/** From source, so that no build need be made; or as it is built, which starts in less than half the time. */
const MAIN = fileURLToPath(
  new URL(FEWSTEP_TEST_BUILT ? "../../dist/cli/main.js" : "../../src/cli/main.ts", import.meta.url),
);
const TSX = import.meta.resolve("tsx");

export interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

interface Options {
  env?: Record<string, string>;
  /** Gets the process, to send it signals. */
  started?: (child: ChildProcess) => void;
}

/** `fewstep ...args`. */
export function fewstep(args: readonly string[], options: Options = {}): Promise<Result> {
  return start(FEWSTEP_TEST_BUILT ? [MAIN, ...args] : ["--import", TSX, MAIN, ...args], options);
}

/** One sentence on stderr, nothing on stdout, exit code 2. */
export function expectRefusal({ code, stdout, stderr }: Result, message: string | RegExp): void {
  if (typeof message === "string") expect(stderr).toContain(message);
  else expect(stderr).toMatch(message);
  expect(stderr).toMatch(/^fewstep: [^\n]+\n$/);
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
}

/** A TypeScript file, or `--eval` with code, through tsx. */
export function run(args: readonly string[], options: Options = {}): Promise<Result> {
  return start(["--import", TSX, ...args], options);
}

function start(args: readonly string[], { env = {}, started }: Options): Promise<Result> {
  const child = spawn(process.execPath, args, {
    env: { ...process.env, FEWSTEP_DEBUG: "", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const result: Result = { code: null, stdout: "", stderr: "" };
  child.stdout.on("data", (data) => (result.stdout += data));
  child.stderr.on("data", (data) => (result.stderr += data));
  started?.(child);
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ ...result, code }));
  });
}
