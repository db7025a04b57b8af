/** @file Numbers as people read them. */

import type { Job } from "./server.ts";

/** Milliseconds that the pictures of a job took, without loading the model. */
export function workMs({ seconds = {} }: Pick<Job, "seconds">): number {
  const { encode = 0, denoise = 0, decode = 0 } = seconds;
  return 1000 * (encode + denoise + decode);
}

/** Calls of the network for one picture: two for each step under guidance. */
export function evaluations({ steps, guidance_scale }: { steps: number; guidance_scale: number }): number {
  return steps * (guidance_scale > 1 ? 2 : 1);
}

/** 8 ms, 0.64 s, 12 s, 3 min. */
export function duration(ms: number): string {
  if (ms < 100) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(2)} s`;
  return ms < 120_000 ? `${Math.round(ms / 1000)} s` : `${Math.round(ms / 60_000)} min`;
}

/** 12× faster, 1.8× faster, as fast. */
export function speed(ms: number, than: number): string {
  const ratio = than / ms;
  if (ratio > 0.95 && ratio < 1.05) return "as fast";
  const [times, word] = ratio > 1 ? [ratio, "faster"] : [1 / ratio, "slower"];
  return `${times < 10 ? times.toFixed(1) : Math.round(times)}× ${word}`;
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}
