/** @file `fewstep convert`: the same weights in another layout, or with adapters in them. */

import { type Command, Option } from "commander";
import type { Loras, Part } from "../pipelines/index.ts";
import { collectLora } from "./options.ts";
import { startProgress } from "./progress.ts";

interface ConvertCommand {
  only?: Part;
  lora?: Loras;
  force?: boolean;
  json?: boolean;
}

export function convertCommand(program: Command): void {
  program
    .command("convert")
    .description(
      "turn a model folder into a single file or back, put adapters into its weights, or rename the tensors of one network",
    )
    .argument("<in>", "folder in diffusers layout, or .safetensors: a checkpoint, a UNet, a VAE")
    .argument("<out>", "file.safetensors, or a folder for a whole model")
    .addOption(new Option("--only <network>", "of a whole model, into a file").choices(["unet", "vae"]))
    .option(
      "--lora <file[:strength]>",
      "adapter that becomes part of the weights; may be given more than once",
      collectLora,
    )
    .option("--force", "replace what is there")
    .option("--json", "print one JSON object and nothing else")
    .action(convert);
}

async function convert(
  from: string,
  to: string,
  { only, lora: loras, force, json }: ConvertCommand,
): Promise<void> {
  const progress = await startProgress(!json);
  try {
    const { convertModel } = await import("../pipelines/index.ts");
    const { localPath } = await import("../hub/index.ts");
    await import("../platform/node.ts"); // adapters are added by ONNX Runtime
    progress.update(`converting ${from}`);
    const warnings = await convertModel(localPath(from), to, { part: only, loras, force });
    progress.stop();
    if (!json) for (const warning of warnings) console.error(`fewstep: ${warning}`);
    console.log(json ? JSON.stringify({ file: to, warnings }) : to);
  } finally {
    progress.stop();
  }
}
