/** @file The package's version, for `--version` and picture metadata. */

import { readFileSync } from "node:fs";

/** From the package.json two folders up, in the sources and in `dist` alike. */
export function version(): string {
  const file = new URL("../../package.json", import.meta.url);
  return (JSON.parse(readFileSync(file, "utf8")) as { version: string }).version;
}
