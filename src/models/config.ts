/** @file Reading config.json files: every field checked, clear sentences for what is not supported. */

import type { z } from "zod";

/**
 * Parses a config. Fields that the schema does not know are ignored: files carry many that change nothing.
 * @throws one sentence that names the model, the field, what was given and what is accepted.
 */
export function parseConfig<T extends z.ZodType>(model: string, schema: T, json: unknown): z.infer<T> {
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const field = issue.path.join(".");
  const given = issue.path.reduce<unknown>(
    (o, k) => (o as Record<PropertyKey, unknown> | undefined)?.[k],
    json,
  );
  throw new Error(`${model} config: ${field || "file"} is ${JSON.stringify(given)}; ${issue.message}`);
}
