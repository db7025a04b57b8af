/** @file `fewstep data`: makes datasets. */

import { join } from "node:path";
import type { Command } from "commander";
import { cacheFolder } from "../platform/index.ts";
import { wholeNumber } from "./options.ts";
import { startProgress } from "./progress.ts";

/** Pictures on the contact sheet. */
const SHEET = 96;

interface IconsOptions {
  out: string;
  size: number;
  cache: string;
  json?: boolean;
}

export function dataCommand(program: Command): void {
  const data = program.command("data").description("make datasets");
  data
    .command("icons")
    .description(
      "render the icon sets that the bundled model learned from; fetches them from the npm registry",
    )
    .option("--out <folder>", "the dataset", "icons")
    .option("--size <pixels>", "side of the pictures", wholeNumber(16, 512), 64)
    .option("--cache <folder>", "for fetched packages", cacheFolder())
    .option("--json", "print one JSON object and nothing else")
    .action(icons);
}

async function icons({ out, size, cache, json }: IconsOptions): Promise<void> {
  const progress = await startProgress(!json);
  try {
    const { buildIcons, contactSheet, loadIcons, plainCaption } = await import("../data/index.ts");
    const { atomicWrite } = await import("../platform/index.ts");
    progress.update("fetching");
    const onProgress = (done: number, total: number): void => progress.update("rendering", done, total);
    const summary = await buildIcons({ out, size, cache, onProgress });
    const dataset = await loadIcons(out);
    const chosen = Array.from({ length: SHEET }, (_, i) => Math.floor((i * dataset.length) / SHEET));
    const pictures = chosen.map((i) => ({
      data: dataset.image(i),
      width: size,
      height: size,
      label: plainCaption(dataset.rows[i]),
    }));
    const sheet = join(out, "sheet.png");
    await atomicWrite(sheet, await contactSheet(pictures, { columns: 12 }));
    progress.stop();
    if (json) {
      console.log(JSON.stringify({ out, size, sheet, ...summary }));
      return;
    }
    const splits = Object.entries(summary.splits).map(([split, count]) => `${count} ${split}`);
    console.log(
      `${out}: ${summary.pictures} pictures of ${summary.concepts} concepts (${splits.join(", ")})`,
    );
    console.log(sheet);
    for (const reason of summary.skipped) console.error(`skipped ${reason}`);
  } finally {
    progress.stop();
  }
}
