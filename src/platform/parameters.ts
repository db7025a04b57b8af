/**
 * @file The `parameters` text of a generated picture, as stable-diffusion-webui writes and reads it
 * ("infotext"): prompt, a `Negative prompt:` line, then one line of `Key: value` pairs.
 */

export interface GenerationParameters {
  prompt: string;
  /** Empty when there is none. */
  negativePrompt: string;
  /** `Steps`, `Sampler`, `CFG scale`, `Seed`, `Size`, `Model`, … in order; values unquoted. */
  fields: Map<string, string>;
}

/**
 * @param fields entries that are undefined are left out; values with commas, colons or line breaks are quoted
 * @example formatParameters("a red apple", "", { Steps: 4, Size: "64x64" }) // "a red apple\nSteps: 4, Size: 64x64"
 */
export function formatParameters(
  prompt: string,
  negativePrompt: string,
  fields: Readonly<Record<string, string | number | bigint | undefined>>,
): string {
  const pairs = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => `${key}: ${quote(String(value))}`);
  const negative = negativePrompt ? [`Negative prompt: ${negativePrompt}`] : [];
  return [prompt, ...negative, pairs.join(", ")].join("\n");
}

/**
 * Reads what `formatParameters` and other programs write. Prompts may span lines; a last line with fewer than
 * three pairs counts as prompt, as it does elsewhere.
 */
export function parseParameters(text: string): GenerationParameters {
  const lines = text.trim().split(/\r?\n/);
  let fields = parsePairs(lines.at(-1)!);
  if (fields.size < 3) fields = new Map();
  else lines.pop();
  const marker = "Negative prompt:";
  const at = lines.findIndex((line) => line.trimStart().startsWith(marker));
  const negative = at < 0 ? [] : lines.splice(at);
  if (negative.length > 0) negative[0] = negative[0].trimStart().slice(marker.length);
  return { prompt: lines.join("\n").trim(), negativePrompt: negative.join("\n").trim(), fields };
}

function parsePairs(line: string): Map<string, string> {
  const pairs = new Map<string, string>();
  const pair = /\s*(\w[\w \-/]+):\s*("(?:\\.|[^"\\])*"(?=\s*(?:,|$))|[^,]*)(?:,|$)/y;
  for (let at = 0; at < line.length; at = pair.lastIndex) {
    pair.lastIndex = at;
    const match = pair.exec(line);
    if (match) pairs.set(match[1], unquote(match[2].trim()));
    else {
      const comma = line.indexOf(",", at);
      pair.lastIndex = comma < 0 ? line.length : comma + 1;
    }
  }
  return pairs;
}

function quote(value: string): string {
  return /[,:\n]/.test(value) || value.startsWith('"') ? JSON.stringify(value) : value;
}

function unquote(value: string): string {
  if (!value.startsWith('"') || !value.endsWith('"')) return value;
  try {
    return String(JSON.parse(value));
  } catch {
    return value;
  }
}
