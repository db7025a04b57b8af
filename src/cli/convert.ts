/** @file `fewstep convert`: the same weights in another layout. */

import { type Command, Option } from "commander";
import type { Part } from "../pipelines/index.ts";
import { startProgress } from "./progress.ts";

interface ConvertOptions {
  only?: Part;
  force?: boolean;
  json?: boolean;
}

export function convertCommand(program: Command): void {
  program
    .command("convert")
    .description("turn a model folder into a single file or back, or rename the tensors of one network")
    .argument("<in>", "folder in diffusers layout, or .safetensors: a checkpoint, a UNet, a VAE")
    .argument("<out>", "file.safetensors, or a folder for a whole model")
    .addOption(new Option("--only <network>", "of a whole model, into a file").choices(["unet", "vae"]))
    .option("--force", "replace what is there")
    .option("--json", "print one JSON object and nothing else")
    .action(convert);
}

async function convert(from: string, to: string, { only, force, json }: ConvertOptions): Promise<void> {
  const progress = await startProgress(!json);
  try {
    const { convertModel } = await import("../pipelines/index.ts");
    const { localPath } = await import("../hub/index.ts");
    progress.update(`converting ${from}`);
    await convertModel(localPath(from), to, { part: only, force });
    progress.stop();
    console.log(json ? JSON.stringify({ file: to }) : to);
  } finally {
    progress.stop();
  }
}
