/** @file What the environment says about the hub; the variables are those of Python's huggingface_hub. */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { hubHome } from "./cache.ts";

/** The address without a slash at its end: `given`, `HF_ENDPOINT`, or the hub itself. */
export function endpointOf(given = process.env.HF_ENDPOINT || "https://huggingface.co"): string {
  if (!URL.canParse(given) || !/^https?:$/.test(new URL(given).protocol))
    throw new Error(`the endpoint ${given} is no address; give one such as https://huggingface.co`);
  return given.replace(/\/+$/, "");
}

/** `given`, `HF_TOKEN`, or the file in which logging in leaves it; undefined where there is none. */
export function tokenOf(given?: string): string | undefined {
  const { HF_TOKEN, HF_TOKEN_PATH } = process.env;
  const file = HF_TOKEN_PATH || join(hubHome(), "token");
  const token = (given ?? (HF_TOKEN || (existsSync(file) ? readFileSync(file, "utf8") : ""))).trim();
  if (/[^\x21-\x7e]/.test(token))
    throw new Error(
      `the token from HF_TOKEN or ${file} has characters that no token has; give it as it was made`,
    );
  return token || undefined;
}

/** Whether `HF_HUB_OFFLINE` is set. */
export function isOffline(): boolean {
  return /^(?:1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? "");
}
