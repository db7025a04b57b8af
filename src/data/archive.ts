/** @file Reads parts of files and lists tar archives in place. Nothing is ever extracted. */

import { type FileHandle, open } from "node:fs/promises";
import { Header, Pax } from "tar";

/** Where bytes lie: a whole file, or a file inside an archive. */
export interface Part {
  path: string;
  /** Bytes. */
  offset: number;
  bytes: number;
  /** Changes when the file changes: size, time of modification, offset. */
  stamp: string;
}

/** A long name or a pax header needs a few hundred bytes. */
const MAX_META = 1 << 20;
const BLOCK = 512;

async function readBytes(handle: FileHandle, offset: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes);
  for (let done = 0; done < bytes; ) {
    const { bytesRead } = await handle.read(buffer, done, bytes - done, offset + done);
    if (bytesRead === 0) throw new Error("the file ended early: it changed while it was in use");
    done += bytesRead;
  }
  return buffer;
}

/** @throws when the part is larger than `limit` bytes, or the file has become shorter. */
export async function readPart({ path, offset, bytes }: Part, limit: number): Promise<Buffer> {
  if (bytes > limit) throw new Error(`${bytes} bytes are too many, at most ${limit} are read`);
  const handle = await open(path, "r");
  try {
    return await readBytes(handle, offset, bytes);
  } finally {
    await handle.close();
  }
}

/**
 * The regular files of an uncompressed tar archive, in order. Only headers are read, so a shard of gigabytes
 * lists fast; names are labels and never become paths.
 * @throws at the first header that is damaged or points beyond the end, after what came before it was given.
 */
export async function* tarEntries(archive: Part): AsyncGenerator<{ name: string; part: Part }> {
  const handle = await open(archive.path, "r");
  try {
    yield* entries(archive, handle);
  } finally {
    await handle.close();
  }
}

async function* entries(archive: Part, handle: FileHandle): AsyncGenerator<{ name: string; part: Part }> {
  const { path, stamp, bytes: end } = archive;
  let next: Pax | undefined; // header fields of the next file
  let all: Pax | undefined; // … of all following files
  for (let at = 0; at + BLOCK <= end; ) {
    const header = new Header(await readBytes(handle, at, BLOCK), 0, next, all);
    if (header.nullBlock) return;
    if (!header.cksumValid)
      throw new Error(`damaged at byte ${at}, or no tar archive (compressed ones are not read)`);
    const bytes = header.size ?? 0;
    const offset = at + BLOCK;
    if (!Number.isSafeInteger(bytes) || offset + bytes > end)
      throw new Error(`truncated: ${header.path} needs ${bytes} bytes, ${end - offset} are left`);
    const text = async () => {
      if (bytes > MAX_META) throw new Error(`the name at byte ${at} claims ${bytes} bytes`);
      return (await readBytes(handle, offset, bytes)).toString("utf8");
    };
    if (header.type === "ExtendedHeader" || header.type === "OldExtendedHeader")
      next = Pax.parse(await text(), next);
    else if (header.type === "GlobalExtendedHeader") all = Pax.parse(await text(), all, true);
    else if (header.type === "NextFileHasLongPath" || header.type === "OldGnuLongPath")
      next = new Pax({ ...next, path: (await text()).replace(/\0.*/s, "") });
    else if (header.type !== "NextFileHasLongLinkpath") {
      next = undefined;
      if (header.type === "File" || header.type === "OldFile")
        yield { name: header.path ?? "", part: { path, offset, bytes, stamp: `${stamp}@${offset}` } };
    }
    at = offset + Math.ceil(bytes / BLOCK) * BLOCK;
  }
}
