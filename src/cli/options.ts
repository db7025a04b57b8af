/** @file Parsers for option values: each accepts one range and says so when the value is outside. */

import { InvalidArgumentError, Option } from "commander";

const MAX_SEED = 2n ** 64n - 1n;
/** Pixels. Activations of larger pictures fit no memory. */
const MAX_SIDE = 8192;

/** A whole number from `min` to `max`. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text.trim()) || value < min || value > max)
      throw new InvalidArgumentError(`Give a whole number from ${min} to ${max}.`);
    return value;
  };
}

/** A number of at least `min`, and at most `max`. */
export function numberFrom(min: number, max = Number.POSITIVE_INFINITY): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < min || value > max)
      throw new InvalidArgumentError(
        max === Number.POSITIVE_INFINITY
          ? `Give a number of at least ${min}.`
          : `Give a number from ${min} to ${max}.`,
      );
    return value;
  };
}

/** 0 to 2^64 − 1, as other programs take; a bigint only beyond 2^53. */
export function parseSeed(text: string): number | bigint {
  if (!/^\d{1,20}$/.test(text.trim()) || BigInt(text) > MAX_SEED)
    throw new InvalidArgumentError(`Give a whole number from 0 to ${MAX_SEED}.`);
  return Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text);
}

export interface Size {
  /** Pixels. */
  width: number;
  /** Pixels. */
  height: number;
}

/** `96` (square) or `128x96`, width first. */
export function parseSize(text: string): Size {
  const match = /^(\d{1,5})(?:[x×](\d{1,5}))?$/i.exec(text.trim());
  const width = Number(match?.[1]);
  const height = Number(match?.[2] ?? match?.[1]);
  if (!match || [width, height].some((side) => side < 1 || side > MAX_SIDE))
    throw new InvalidArgumentError(
      `Give pixels, at most ${MAX_SIDE}, as one number ("64") or as width x height ("128x64").`,
    );
  return { width, height };
}

/** `96` or `128x96`, width first, as the height and width that a model is told. */
export function parseToldSize(text: string): [height: number, width: number] {
  const { width, height } = parseSize(text);
  return [height, width];
}

/** `16,32`: pixels from the top and from the left. */
export function parseCorner(text: string): [top: number, left: number] {
  const [, top, left] = /^(\d{1,5}),(\d{1,5})$/.exec(text.trim()) ?? [];
  if (top === undefined)
    throw new InvalidArgumentError('Give pixels from the top and from the left, such as "16,32".');
  return [Number(top), Number(left)];
}

/** `800M`, `4G`; plain numbers are bytes. */
export function parseBytes(text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?$/i.exec(text.trim()) ?? [];
  if (number === undefined) throw new InvalidArgumentError('Give a size such as "800M" or "4G".');
  return Number(number) * 1024 ** " KMGT".indexOf(unit.toUpperCase() || " ");
}

/** `file.safetensors`, `folder` or `folder:0.8`, added to those given before; 1 is the strength that it was trained at. */
export function collectLora(
  text: string,
  before: Readonly<Record<string, number>> = {},
): Record<string, number> {
  const [, file = text, number = "1"] =
    /^(.+\.safetensors):([^/\\]*)$/i.exec(text) ?? /^(.+):([+-]?[\d.]+(?:e[+-]?\d+)?)$/i.exec(text) ?? [];
  const strength = number.trim() === "" ? Number.NaN : Number(number);
  if (!Number.isFinite(strength))
    throw new InvalidArgumentError('The strength is not a number; give "file.safetensors:0.8".');
  if (Object.hasOwn(before, file)) throw new InvalidArgumentError("This file is given twice.");
  return { ...before, [file]: strength };
}

/** In which networks run; the names are those of the library, which is loaded later. */
export function precisionOption(): Option {
  const described = "of the networks; auto is int8 for large ones on a CPU";
  return new Option("--precision <name>", described).choices(["auto", "fp32", "int8"]).default("auto");
}
