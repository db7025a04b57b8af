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

/** 12,500, 0.0012, 3.2e-7. */
export function figure(value: number): string {
  const size = Math.abs(value);
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

/** 12 s, 5 min, 3 h, 2 days: how long ago, roughly. */
export function ago(seconds: number): string {
  if (seconds < 100) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 100 * 60) return `${Math.round(seconds / 60)} min`;
  const hours = Math.round(seconds / 3600);
  return hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} days`;
}
