/** @file Files appear whole or not at all. */

import { open, rename, rm } from "node:fs/promises";
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";

/** Writes parts to a temporary file beside `path`, syncs and renames it; on any failure nothing is left. */
export async function atomicWrite(path: string, ...parts: readonly Uint8Array[]): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    const file = await open(temporary, "w");
    try {
      for (const part of parts) await file.writeFile(part);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOSPC") throw new Error(`${path}: the disk is full; nothing was written`, { cause: error });
    throw error;
  }
}
