/** @file Reads parts of files and lists tar archives in place. Nothing is ever extracted. */

import { type FileHandle, open } from "node:fs/promises";
import { Header, Pax } from "tar";

/** Where bytes lie: a whole file, or a file inside an archive. */
export interface Part {
  path: string;
  /** Bytes. */
  offset: number;
  bytes: number;
  /** Changes when the file changes: size, time of modification, place in the archive. */
  stamp: string;
}

/** A long name or a pax header needs a few hundred bytes. */
const MAX_META = 1 << 20;
const BLOCK = 512;

async function read(handle: FileHandle, offset: number, bytes: number, limit: number): Promise<Buffer> {
  if (bytes > limit) throw new Error(`${bytes} bytes are too many, at most ${limit} are read`);
  const buffer = Buffer.alloc(bytes);
  for (let done = 0; done < bytes; ) {
    const { bytesRead } = await handle.read(buffer, done, bytes - done, offset + done);
    if (bytesRead === 0) throw new Error("the file ends early: it is truncated, or changed while in use");
    done += bytesRead;
  }
  return buffer;
}

/** @throws when the part is larger than `limit` bytes, or the file has become shorter. */
export async function readPart({ path, offset, bytes }: Part, limit: number): Promise<Buffer> {
  await using handle = await open(path, "r");
  return await read(handle, offset, bytes, limit);
}

function parseHeader(block: Buffer, next?: Pax, all?: Pax): Header | undefined {
  try {
    return new Header(block, 0, next, all);
  } catch {
    return undefined; // of the block's numbers
  }
}

/**
 * The regular files of an uncompressed tar archive, in order. Only headers are read, so a shard of gigabytes
 * lists fast; names are labels and never become paths.
 * @throws at the first header that is damaged or points beyond the end, after what came before it was given.
 */
export async function* tarEntries(archive: Part): AsyncGenerator<{ name: string; part: Part }> {
  await using handle = await open(archive.path, "r");
  let next: Pax | undefined; // header fields of the next file
  let all: Pax | undefined; // … of all following files
  for (let at = 0; at < archive.bytes; ) {
    const header = parseHeader(await read(handle, at, BLOCK, BLOCK), next, all);
    if (header?.nullBlock) return;
    if (!header?.cksumValid)
      throw new Error(`damaged at byte ${at}, or no tar archive (compressed ones are not read)`);
    const { type, path: name = "", size: bytes = 0 } = header;
    const offset = at + BLOCK;
    if (!Number.isSafeInteger(bytes) || offset + bytes > archive.bytes)
      throw new Error(`truncated: ${name} needs ${bytes} bytes, ${archive.bytes - offset} are left`);
    const text = async () => (await read(handle, offset, bytes, MAX_META)).toString("utf8");
    if (type === "ExtendedHeader" || type === "OldExtendedHeader") next = Pax.parse(await text(), next);
    else if (type === "GlobalExtendedHeader") all = Pax.parse(await text(), all, true);
    else if (type === "NextFileHasLongPath" || type === "OldGnuLongPath")
      next = new Pax({ ...next, path: (await text()).replace(/\0.*/s, "") });
    else if (type !== "NextFileHasLongLinkpath") {
      next = undefined;
      if (type === "File" || type === "OldFile")
        yield { name, part: { path: archive.path, offset, bytes, stamp: `${archive.stamp}@${offset}` } };
    }
    at = offset + Math.ceil(bytes / BLOCK) * BLOCK;
  }
}
