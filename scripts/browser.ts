/** @file A browser with the page of a server, where there is one. */

import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, chromium } from "playwright-core";
import { build } from "vite";

const PLACES = [
  process.env.CHROMIUM,
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];

/** Milliseconds that anything may take before a test fails: browsers are slow on a machine that others use. */
export const PATIENCE: number = Number(process.env.PATIENCE ?? 60_000);

/** Undefined where no browser is found. */
export const CHROMIUM: string | undefined = PLACES.find((path) => path !== undefined && existsSync(path));

if (CHROMIUM === undefined)
  process.stderr.write(
    "no chromium: the tests of the page are skipped; install it, or name one in CHROMIUM\n",
  );

export function openBrowser(): Promise<Browser> {
  return chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage"],
    timeout: PATIENCE,
  });
}

/** Builds the page into a folder of its own; gives the folder, and what removes it. */
export async function buildPage(): Promise<{ folder: string } & AsyncDisposable> {
  const folder = await mkdtemp(join(tmpdir(), "fewstep-page-"));
  const configFile = fileURLToPath(new URL("../web/vite.config.ts", import.meta.url));
  await build({ configFile, logLevel: "warn", build: { outDir: folder } });
  return { folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true }) };
}
