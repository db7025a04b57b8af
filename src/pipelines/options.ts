/** @file What pictures may be asked for, as far as what uses an option does not look itself. */

import { NOISE_RULES } from "../samplers/index.ts";
import { PROMPT_WEIGHTINGS } from "../tokenizers/index.ts";
import { quote } from "../weights/index.ts";
import type { GenerateOptions } from "./sdxl.ts";
import { VAE_TILINGS } from "./tiling.ts";

type Accepted = readonly [what: string, accepts: (value: unknown) => boolean];

const number =
  (from: number, to = Number.MAX_VALUE) =>
  (value: unknown) =>
    typeof value === "number" && value >= from && value <= to;
const oneOf = (values: readonly string[]): Accepted => [
  `one of ${values.join(", ")}`,
  (value) => values.some((one) => one === value),
];

const ACCEPTED: { readonly [K in keyof GenerateOptions]?: Accepted } = {
  batch: ["a whole number from 1", (value) => Number.isSafeInteger(value) && number(1)(value)],
  guidance: ["a number from 0", number(0)],
  guidanceRescale: ["a number from 0 to 1", number(0, 1)],
  negativePrompt: ["a text", (value) => typeof value === "string"],
  noiseRule: oneOf(NOISE_RULES),
  promptWeighting: oneOf(PROMPT_WEIGHTINGS),
  sampler: ["a sampler, such as SAMPLERS.euler", (value) => typeof value === "object"],
  seed: [
    "a whole number from 0 to 2⁶⁴ − 1, beyond 2⁵³ − 1 a bigint",
    (value) =>
      typeof value === "bigint"
        ? BigInt.asUintN(64, value) === value
        : Number.isSafeInteger(value) && number(0)(value),
  ],
  vaeTiling: oneOf(VAE_TILINGS),
};

/** @throws a sentence for the first that is not accepted. */
export function checkOptions(prompts: readonly unknown[], options: GenerateOptions): void {
  if (prompts.length === 0 || prompts.some((prompt) => typeof prompt !== "string"))
    throw new Error("prompts are texts: give one, or a list with at least one");
  for (const [name, [what, accepts]] of Object.entries(ACCEPTED)) {
    const value = options[name as keyof GenerateOptions];
    if (value === undefined || accepts(value)) continue;
    const given = typeof value === "string" ? quote(value) : String(value);
    throw new Error(`${name} is ${given}; give ${what}`);
  }
}
