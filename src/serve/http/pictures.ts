/** @file Pictures as files and URLs. */

import type { FastifyRequest } from "fastify";
import type { GeneratedPicture } from "../../pipelines/index.ts";
import { encodeLossy, encodePng, type Picture } from "../../platform/index.ts";

export type Format = "png" | "jpeg" | "webp";

/** Of JPEG and WebP, 0 to 100, where none is asked for. */
export const QUALITY = 100;

/** A file of the picture; PNG keeps the settings. @param quality of JPEG and WebP, 0 to 100 */
export function encode(
  picture: Picture | GeneratedPicture,
  format: Format,
  quality = QUALITY,
): Promise<Uint8Array> {
  if (format !== "png") return encodeLossy(picture, format, Math.max(1, quality));
  return "png" in picture ? picture.png() : encodePng(picture);
}

export async function encodeBase64(picture: Picture, format: Format, quality?: number): Promise<string> {
  return Buffer.from(await encode(picture, format, quality)).toString("base64");
}

/** Where picture i of a job is fetched. @param quality of JPEG and WebP, 0 to 100 */
export function pictureUrl(
  { protocol, host }: FastifyRequest,
  id: string,
  i: number,
  format: Format = "png",
  quality = QUALITY,
): string {
  const query = format === "png" ? "" : `?quality=${quality}`;
  return `${protocol}://${host}/api/jobs/${id}/pictures/${i}.${format}${query}`;
}

/** JSON has no numbers beyond 2^53. */
export function jsonSeed(seed: number | bigint): number | string {
  return Number.isSafeInteger(Number(seed)) ? Number(seed) : String(seed);
}

/** A seed as it came in, or a random one. */
export function seedFrom(given: number | string | null | undefined): number | bigint {
  if (given === null || given === undefined) return Math.floor(Math.random() * 2 ** 32);
  const number = Number(given);
  return Number.isSafeInteger(number) ? number : BigInt(given);
}
