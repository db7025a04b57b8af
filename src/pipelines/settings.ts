/** @file How a distilled network wants to be sampled. Its file says so itself, in the metadata of safetensors. */

import {
  PREDICTION_TYPES,
  type PredictionType,
  SAMPLERS,
  SPACINGS,
  type Spacing,
} from "../samplers/index.ts";
import { quote } from "../weights/index.ts";

/** What is left out stays as the model folder has it. */
export interface SamplingSettings {
  /** Network evaluations that the weights were distilled for. */
  steps?: number;
  predictionType?: PredictionType;
  spacing?: Spacing;
  /** Classifier-free guidance; up to 1 it is off. */
  guidance?: number;
  /** Name among `SAMPLERS`. */
  sampler?: string;
}

interface Field<T> {
  /** Key in the metadata, whose values are strings. */
  key: string;
  accepted: string;
  /** Undefined for what is not accepted. */
  parse(text: string): T | undefined;
}

function oneOf<T extends string>(key: string, values: readonly T[]): Field<T> {
  return { key, accepted: values.join(", "), parse: (text) => values.find((value) => value === text) };
}

const FIELDS: { readonly [K in keyof SamplingSettings]-?: Field<NonNullable<SamplingSettings[K]>> } = {
  steps: {
    key: "fewstep.steps",
    accepted: "whole numbers from 1 to 1000",
    parse: (text) => (/^[1-9]\d{0,2}$|^1000$/.test(text) ? Number(text) : undefined),
  },
  predictionType: oneOf("fewstep.prediction_type", PREDICTION_TYPES),
  spacing: oneOf("fewstep.timestep_spacing", SPACINGS),
  guidance: {
    key: "fewstep.guidance",
    accepted: "numbers from 0 to 100",
    parse: (text) => (/^\d{1,3}(\.\d+)?$/.test(text) && Number(text) <= 100 ? Number(text) : undefined),
  },
  sampler: oneOf("fewstep.sampler", Object.keys(SAMPLERS)),
};

/** The settings as metadata of a weights file. @throws when one could not be read back. */
export function samplingMetadata(settings: SamplingSettings): Record<string, string> {
  const metadata: Record<string, string> = {};
  for (const [name, { key }] of Object.entries(FIELDS)) {
    const value = settings[name as keyof SamplingSettings];
    if (value !== undefined) metadata[key] = String(value);
  }
  samplingSettings(metadata, "sampling settings");
  return metadata;
}

/**
 * The settings that a file carries; undefined when it carries none.
 * @throws a sentence that names the file and the value that is not accepted.
 */
export function samplingSettings(
  metadata: Readonly<Record<string, string>>,
  file: string,
): SamplingSettings | undefined {
  const found = Object.entries(FIELDS)
    .filter(([, { key }]) => Object.hasOwn(metadata, key))
    .map(([name, { key, accepted, parse }]) => {
      const value = parse(metadata[key]);
      if (value === undefined)
        throw new Error(`${file}: ${key} is ${quote(metadata[key])}; accepted are ${accepted}`);
      return [name, value] as const;
    });
  return found.length > 0 ? Object.fromEntries(found) : undefined;
}
