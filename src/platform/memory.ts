/** @file How much memory a program may still take. */

import { readFileSync } from "node:fs";
import { freemem } from "node:os";
import process from "node:process";

/**
 * Bytes that are free, within the limit of a container where there is one. What the container's files take in the
 * page cache counts as free: it is given up when memory is needed.
 */
export function availableMemory(): number {
  const limit = process.constrainedMemory();
  if (!(limit > 0 && limit < Number.MAX_SAFE_INTEGER)) return process.availableMemory();
  return Math.min(limit, freemem(), process.availableMemory() + cachedFiles());
}

/** Bytes of files in the page cache of this container (cgroup v2, then v1). */
function cachedFiles(): number {
  for (const path of ["/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"]) {
    try {
      const text = readFileSync(path, "utf8");
      const bytes = (name: string) => Number(new RegExp(`^${name} (\\d+)$`, "m").exec(text)?.[1] ?? 0);
      return bytes("inactive_file") + bytes("active_file");
    } catch {
      // Not that version, or no container.
    }
  }
  return 0;
}
