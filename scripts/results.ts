/**
 * @file Writes docs/results.md and its images from a list of configurations: `npx tsx scripts/results.ts`. Results are
 * kept in docs/results, so that a run that was killed goes on, and another writes the page anew without measuring, even
 * where weights are gone that were judged before. What docs/results-notes.md says, by hand, is put at the end.
 */

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join, relative } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { machine } from "../bench/machine.ts";
import { atomicWrite } from "../src/platform/index.ts";
import "../src/index.node.ts";
import { readList } from "./results/list.ts";
import { measure } from "./results/measure.ts";
import { identities, section, type TableResult } from "./results/page.ts";

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      list: { type: "string", default: "recipes/results.json" },
      out: { type: "string", default: "docs" },
      /** For the teacher's pictures. */
      cache: { type: "string", default: "runs/results" },
      /** Pictures of each split, to try the script. */
      count: { type: "string" },
      /** Speed is measured anew. */
      time: { type: "boolean", default: false },
    },
  });
  const count = values.count === undefined ? undefined : Number(values.count);
  if (count !== undefined && !(Number.isInteger(count) && count >= 2))
    throw new Error(`--count ${values.count}: give a whole number of at least 2`);
  const list = await readList(values.list);

  const tables: TableResult[] = [];
  for (const table of list.tables) {
    const rows = [];
    const options = {
      list,
      table,
      records: join(values.out, "results"),
      cache: values.cache,
      count,
      time: values.time,
    };
    for (const configuration of table.configurations) {
      const started = performance.now();
      const row = await measure(configuration, options);
      rows.push(row);
      const seconds = ((performance.now() - started) / 1000).toFixed(0);
      const what = row.measured
        ? `FD ${row.measured.scores.fd.toFixed(2)}, to the teacher ${row.measured.scores.fd_to_teacher?.toFixed(2)}`
        : `missing ${row.missing.join(", ")}`;
      console.error(`${table.title}, ${configuration.label}: ${what} (${seconds} s)`);
    }
    tables.push({ table, rows });
  }

  const images = new Map<string, Uint8Array>();
  const sections = [];
  for (const result of tables) sections.push(await section(result, list, images));
  const notes = join(values.out, "results-notes.md");
  const page = [
    "# Results\n",
    `Written by \`npx tsx scripts/results.ts\` from [${values.list}](${relative(values.out, values.list)}), on ${machine()}. FD, patch FD and ` +
      "CLIP score are those of `fewstep eval`; they compare models of this size under this judge with each other only. " +
      "The same prompts and seeds everywhere; lower is better but for CLIP score, R@5 and diversity.\n",
    ...sections,
    identities(tables),
    ...(existsSync(notes) ? [await readFile(notes, "utf8")] : []),
  ];
  for (const [name, image] of images) await atomicWrite(join(values.out, "images", name), image);
  const file = join(values.out, "results.md");
  await atomicWrite(file, `${page.filter(Boolean).join("\n").trimEnd()}\n`);
  console.log(file);
}

await main().catch((error: Error) => {
  console.error(`results: ${error.message}`);
  process.exitCode = 2;
});
