/** @file A folder for each test, and pictures to put there. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import sharp from "sharp";
import { afterEach, beforeEach } from "vitest";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fewstep-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** A path in the test's folder. */
export function at(...names: string[]): string {
  return join(folder, ...names);
}

/** Writes a file, with the folders above it; gives its path. */
export function put(name: string, content: string | Uint8Array): string {
  mkdirSync(dirname(at(name)), { recursive: true });
  writeFileSync(at(name), content);
  return at(name);
}

/** A picture of one colour. */
export async function plain(
  format: "png" | "jpeg" | "webp" | "svg",
  [width, height]: readonly [number, number] = [64, 64],
  background = "#336699",
): Promise<Buffer> {
  if (format === "svg") return Buffer.from(`<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>`);
  return sharp({ create: { width, height, channels: 3, background } })
    [format]()
    .toBuffer();
}

/** A picture that does not compress, so that cutting it loses pixels. */
export async function noise(format: "png" | "jpeg" | "webp", side = 64): Promise<Buffer> {
  const data = Uint8Array.from({ length: side * side * 3 }, (_, i) => Math.imul(i + 1, 0x9e3779b1) >>> 24);
  return sharp(data, { raw: { width: side, height: side, channels: 3 } })
    [format]()
    .toBuffer();
}
