/** @file Brings one file into the cache, however often the connection is cut, and checks it. */

import { PartialFile } from "./partial.ts";
import type { RemoteFile, RemoteRepo } from "./remote.ts";
import { RETRIES } from "./request.ts";

interface Transfer {
  remote: RemoteRepo;
  commit: string;
  /** Path of the finished file. */
  target: string;
  signal: AbortSignal;
  /** Gets the bytes that came, or that were there; negative when they are of no use. */
  onBytes(count: number): void;
}

/** @returns whether bytes were fetched. @throws one sentence, and leaves nothing that is wrong. */
export async function transfer(file: RemoteFile, to: Transfer): Promise<boolean> {
  await using partial = await PartialFile.claim(to.target, file, to.signal);
  to.onBytes(partial?.bytes ?? file.size);
  if (!partial) return false;
  const resumed = partial.bytes > 0;
  await receive(file, partial, to);
  if (resumed && !partial.isRight()) {
    await restart(partial, to); // it was the beginning of something else
    await receive(file, partial, to);
  }
  if (!partial.isRight()) {
    await partial.discard();
    throw new Error(
      `${file.path} arrived with another hash than the ${file.etag} that is listed, and was removed; ` +
        "run it again, or name another mirror in HF_ENDPOINT",
    );
  }
  await partial.place();
  return true;
}

/** Until all bytes are there. */
async function receive(file: RemoteFile, partial: PartialFile, to: Transfer): Promise<void> {
  let most = partial.bytes;
  for (let tries = 0; partial.bytes < file.size; ) {
    const { start, chunks } = await to.remote.open(file, to.commit, partial.bytes, to.signal);
    if (start !== partial.bytes) await restart(partial, to);
    for await (const chunk of chunks) {
      await partial.append(chunk);
      to.onBytes(chunk.length);
      if (partial.bytes > file.size) return; // its hash will not be right
    }
    tries = partial.bytes > most ? 0 : tries + 1;
    most = Math.max(most, partial.bytes);
    if (tries > RETRIES)
      throw new Error(
        `the connection was cut ${tries} times at byte ${most} of ${file.size} of ${file.path}; ` +
          "run it again later, and it goes on from there",
      );
    if (partial.bytes < file.size) await to.remote.pause(tries, to.signal);
  }
}

async function restart(partial: PartialFile, { onBytes }: Transfer): Promise<void> {
  onBytes(-partial.bytes);
  await partial.restart();
}
