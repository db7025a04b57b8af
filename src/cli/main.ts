#!/usr/bin/env node
/** @file The `fewstep` command. Commands load the library only when they run, so that help is instant. */

import process from "node:process";
import { Command } from "commander";
import { version } from "../platform/index.ts";
import { handleSignals } from "./cleanup.ts";
import { convertCommand } from "./convert.ts";
import { dataCommand } from "./data.ts";
import { distillCommand } from "./distill.ts";
import { report } from "./errors.ts";
import { evalCommand } from "./eval.ts";
import { generateCommand } from "./generate.ts";
import { infoCommand } from "./info.ts";
import { pullCommand } from "./pull.ts";
import { serveCommand } from "./serve.ts";
import { trainCommand } from "./train.ts";

const program = new Command("fewstep")
  .description("Text to pictures in few steps, and the trainer that makes such models.")
  .version(version())
  .exitOverride() // throw instead of exiting: report() chooses words and exit code
  .configureOutput({ outputError: () => {} });

generateCommand(program);
infoCommand(program);
convertCommand(program);
pullCommand(program);
dataCommand(program);
trainCommand(program);
distillCommand(program);
evalCommand(program);
serveCommand(program);

handleSignals();
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0); // the reader, such as `head`, has seen enough
  process.exit(report(error));
});

try {
  if (process.argv.length < 3) program.outputHelp();
  else await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
}
