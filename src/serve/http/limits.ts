/** @file How large and how slow a request may be. */

/** Bytes of a body. */
export const BODY = 64 * 1024;
/** Bytes of the headers. */
export const HEADERS = 16 * 1024;
/** Milliseconds until the headers and then the whole request must be there, and until a silent connection is closed. */
export const TIMES = { headersTimeout: 10_000, requestTimeout: 30_000, keepAliveTimeout: 5_000 };
/** Milliseconds between two looks at who is too slow. */
export const CHECK = 5_000;
/** Milliseconds that an answer may be stuck because nobody reads it. */
export const STUCK = 60_000;

export function kibibytes(bytes: number): string {
  return `${bytes / 1024} KiB`;
}
