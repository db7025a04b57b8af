import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { failureOf, UsageError } from "../../src/cli/errors.ts";
import { expectRefusal, fewstep, run } from "./run.ts";

const folder = mkdtempSync(join(tmpdir(), "fewstep-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("bad input: one sentence on stderr, exit code 2", () => {
  test.each<[string, string[], RegExp]>([
    ["unknown command", ["generat", "x"], /unknown command 'generat' \(Did you mean generate\?\)/],
    [
      "unknown flag",
      ["generate", "x", "--stesp", "4"],
      /unknown option '--stesp' \(Did you mean --steps\?\)/,
    ],
    ["no prompt", ["generate"], /missing required argument 'prompt'/],
    [
      "steps",
      ["generate", "x", "--steps", "0"],
      /--steps.*'0' is invalid. Give a whole number from 1 to 1000/,
    ],
    ["seed", ["generate", "x", "--seed", "-1"], /--seed.*from 0 to 18446744073709551615/],
    ["guidance", ["generate", "x", "--guidance", "high"], /--guidance.*'high'.*at least 0/],
    ["size", ["generate", "x", "--size", "big"], /--size.*'big'.*pixels/],
    ["sampler", ["generate", "x", "--sampler", "eular"], /Allowed choices are ddim, dpmpp_2m, /],
    ["output", ["generate", "x", "--out", "apple.gif"], /--out apple.gif: fewstep writes PNG/],
    ["no file", ["info", "nowhere.png"], /nowhere.png: no such file or folder/],
    ["other file", ["info", "package.json"], /package.json: neither a PNG picture, nor/],
  ])("%s", async (_, args, message) => {
    expectRefusal(await fewstep(args), message);
  });

  test("the stack is shown on request", async () => {
    const { code, stderr } = await fewstep(["info", "nowhere.png"], { env: { FEWSTEP_DEBUG: "1" } });
    expect(code).toBe(2);
    expect(stderr).toMatch(/\n {4}at /);
  });
});

test("help and version go to stdout with exit code 0", async () => {
  const [help, none, version] = await Promise.all([fewstep(["--help"]), fewstep([]), fewstep(["--version"])]);
  expect(help.stdout).toMatch(/generate \[options\]/);
  expect(none).toEqual(help);
  expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  expect([help.code, version.code, help.stderr]).toEqual([0, 0, ""]);
});

describe("failureOf", () => {
  const system = (code: string): Error => Object.assign(new Error(code), { code, path: "out/apple.png" });
  test.each([
    [new UsageError("--out x: no"), "--out x: no", 2],
    [new Error("conv at down_blocks.0: weight is missing"), "conv at down_blocks.0: weight is missing", 2],
    [system("ENOSPC"), "out/apple.png: the disk is full", 2],
    [system("EACCES"), "out/apple.png: no permission", 2],
    [new TypeError("x is undefined"), /^internal error: x is undefined \(please report it/, 1],
    ["thrown text", "internal error: thrown text", 1],
  ])("%s", (error, message, code) => {
    const failure = failureOf(error);
    expect(failure.message).toMatch(message);
    expect(failure.code).toBe(code);
  });
});

test.each([
  ["SIGINT", 130],
  ["SIGTERM", 143],
] as const)("%s removes the half-written file and exits with %i", async (signal, exitCode) => {
  const file = join(folder, "half.tmp");
  const code = `
    import { rmSync, writeFileSync } from "node:fs";
    import { handleSignals, onInterrupt } from ${JSON.stringify(new URL("../../src/cli/cleanup.ts", import.meta.url))};
    handleSignals();
    onInterrupt(() => rmSync(${JSON.stringify(file)}))
    writeFileSync(${JSON.stringify(file)}, "half");
    console.log("ready");
    setInterval(() => {}, 1000);`;
  const result = await run(["--input-type=module", "--eval", code], {
    started: (child) => child.stdout?.once("data", () => child.kill(signal)),
  });
  expect(result).toMatchObject({ code: exitCode, stdout: "ready\n" });
  expect(existsSync(file)).toBe(false);
});

test("a command that ends in order is asked once; a second Ctrl-C, not the echo of the first, ends it at once", async () => {
  const code = `
    import { handleSignals, interruptSignal } from ${JSON.stringify(new URL("../../src/cli/cleanup.ts", import.meta.url))};
    handleSignals();
    interruptSignal().addEventListener("abort", ({ target }) => console.log(target.reason.exitCode));
    const clock = [0, 999, 1000]; // at each signal
    performance.now = () => clock[0];
    process.on("SIGINT", () => console.log("alive after", clock.shift()));
    console.log("ready");
    setInterval(() => {}, 1000);`;
  const result = await run(["--input-type=module", "--eval", code], {
    started: (child) =>
      child.stdout?.on("data", (lines) => {
        if (/ready|alive/.test(String(lines))) child.kill("SIGINT");
      }),
  });
  const stdout = "ready\n130\nalive after 0\nalive after 999\n";
  expect(result).toEqual({ code: null, stdout, stderr: "fewstep: interrupted\n" });
});
