/** @file `fewstep serve`: pictures over HTTP. */

import { availableParallelism } from "node:os";
import { type Command, InvalidArgumentError, Option } from "commander";
import type { Precision } from "../pipelines/index.ts";
import type { Device } from "../runtime/index.ts";
import { interruptSignal } from "./cleanup.ts";
import { UsageError } from "./errors.ts";
import { numberFrom, parseBytes, precisionOption, wholeNumber } from "./options.ts";

interface ServeCommand {
  port: number;
  host: string;
  model: string[];
  lora: string[];
  loraDir?: string;
  device: Device;
  precision: Precision;
  token?: string;
  concurrency?: number;
  queueLimit: number;
  timeLimit: number;
  memoryLimit?: number;
  rateLimit?: number;
  cors: string[];
  runs?: string;
}

export function serveCommand(program: Command): void {
  program
    .command("serve")
    .description("make pictures over HTTP: OpenAI's Images API, and jobs with progress and previews")
    .option("--port <n>", "0 for any that is free", wholeNumber(0, 65535), 7860)
    .option("--host <address>", "that is listened on", "127.0.0.1")
    .option("--model <name=path>", "folder or checkpoint file, the default first; repeatable", collect, [])
    .option("--lora <name=file>", "adapter that may be asked for; repeatable", collect, [])
    .option("--lora-dir <folder>", "of more adapters, named after their files")
    .addOption(new Option("--device <name>").choices(["cpu", "webgpu", "cuda"]).default("cpu"))
    .addOption(precisionOption())
    .addOption(
      new Option("--token <text>", "wanted of clients, as a bearer token")
        .env("FEWSTEP_TOKEN")
        .argParser(parseToken),
    )
    .option(
      "--concurrency <n>",
      "jobs at a time; the cores are divided (default: 1, of small models up to 4)",
      wholeNumber(1, 64),
    )
    .option("--queue-limit <n>", "jobs that may wait", wholeNumber(0, 100_000), 64)
    .option("--time-limit <seconds>", "of work on one job", numberFrom(0.1, 2_147_483), 300)
    .option("--memory-limit <size>", 'weights loaded at a time, "4G" (default: half the memory)', parseBytes)
    .option("--rate-limit <n>", "requests of one address in a minute (default: any)", wholeNumber(1, 1e6))
    .option("--cors <origin>", "whose pages may use the server, https://example.org; repeatable", origins, [])
    .option("--runs <folder>", "with training runs, which the page then shows")
    .action(serve);
}

async function serve({ model, lora, loraDir, ...options }: ServeCommand): Promise<void> {
  const { createServer, isLoopback, namedPath } = await import("../serve/index.ts");
  const named = (option: string, texts: readonly string[]): Record<string, string> => {
    const paths = new Map<string, string>();
    for (const [name, path] of texts.map(namedPath)) {
      if (paths.has(name)) throw new UsageError(`${option}: two are called ${name}; give another=${path}`);
      paths.set(name, path);
    }
    return Object.fromEntries(paths);
  };
  const { concurrency = 1 } = options;
  if (concurrency > availableParallelism())
    console.error(`fewstep: ${concurrency} jobs at a time share ${availableParallelism()} cores`);
  if (options.token === undefined && !isLoopback(options.host))
    console.error(`fewstep: anyone who reaches ${options.host} may use this server; --token asks for one`);
  const signal = interruptSignal();
  const interrupted = new Promise((resolve) => signal.addEventListener("abort", resolve));
  const server = await createServer({
    ...options,
    models: model.length > 0 ? named("--model", model) : undefined,
    loras: named("--lora", lora),
    loraFolder: loraDir,
    onNotice: (sentence) => console.error(`fewstep: ${sentence}`),
    onError: (error) => console.error(`fewstep: ${error instanceof Error ? error.stack : String(error)}`),
  });
  try {
    if (!signal.aborted) {
      console.log(await server.listen().catch((error) => refuseAddress(error, options)));
      await interrupted;
    }
  } finally {
    await server.close();
  }
}

function refuseAddress(
  { code, message }: NodeJS.ErrnoException,
  { host, port }: Pick<ServeCommand, "host" | "port">,
): never {
  if (code === "EADDRINUSE")
    throw new UsageError(`--port ${port}: something else listens there; give another`);
  if (code === "EACCES") throw new UsageError(`--port ${port}: not permitted; give one above 1023`);
  throw new UsageError(`--host ${host}: ${message}`);
}

function collect(text: string, before: readonly string[]): string[] {
  return [...before, text];
}

function origins(text: string, before: readonly string[]): string[] {
  const origin = URL.canParse(text) ? new URL(text).origin : "null";
  if (origin === "null" || origin !== text.replace(/\/$/, ""))
    throw new InvalidArgumentError('Give an origin, such as "https://example.org".');
  return [...before, origin];
}

/** Headers carry no other characters. */
function parseToken(text: string): string {
  if (/^[\x21-\x7e]+$/.test(text)) return text;
  throw new InvalidArgumentError("Give letters, digits and punctuation, without spaces.");
}
