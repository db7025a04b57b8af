/** @file The results as Markdown, with plots and contact sheets beside it. Nothing in it is written by hand. */

import { type Plot, plot } from "./charts.ts";
import type { ResultsList, Table } from "./list.ts";
import type { Measured, Row } from "./measure.ts";
import { sideBySide } from "./sheet.ts";

export interface TableResult {
  table: Table;
  rows: readonly Row[];
}

type Done = Row & { measured: Measured };

/** Columns of numbers; undefined where a row has none. */
const COLUMNS: readonly { title: string; cell: (m: Measured) => string | undefined }[] = [
  { title: "steps", cell: ({ result }) => String(result.steps) },
  { title: "guidance", cell: ({ result }) => (result.guidance > 1 ? String(result.guidance) : "off") },
  { title: "evaluations", cell: ({ result }) => String(result.evaluations) },
  { title: "FD", cell: ({ scores }) => scores.fd.toFixed(2) },
  { title: "patch FD", cell: ({ scores }) => scores.patch_fd.toFixed(2) },
  { title: "FD to teacher", cell: ({ scores }) => scores.fd_to_teacher?.toFixed(2) },
  { title: "patch FD to teacher", cell: ({ scores }) => scores.patch_fd_to_teacher?.toFixed(2) },
  { title: "distance to teacher", cell: ({ scores }) => scores.distance_to_teacher?.toFixed(3) },
  { title: "CLIP score", cell: ({ scores }) => scores.clip_score.toFixed(1) },
  { title: "R@5", cell: ({ scores }) => percent(scores.r_at_5) },
  { title: "diversity", cell: ({ scores }) => scores.diversity.toFixed(2) },
  { title: "ms a picture", cell: ({ result }) => (1000 * result.seconds_per_picture).toFixed(0) },
];

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const measuredRows = (rows: readonly Row[]): Done[] =>
  rows.filter((row): row is Done => row.measured !== undefined);

/** The section of one table. Images go to `images`, by name. */
export async function section(
  { table, rows }: TableResult,
  list: ResultsList,
  images: Map<string, Uint8Array>,
): Promise<string> {
  const done = measuredRows(rows);
  const lines = [`## ${table.title}`, ""];
  if (done.length === 0) return [...lines, `Not measured: ${missingText(rows)}`, ""].join("\n");
  const [{ measured: first }] = done;
  const { reference } = first.result;
  lines.push(
    `\`${table.model ?? list.model}\` on ${first.scores.count} pictures of the split \`${table.split}\`. The teacher is its own ` +
      `UNet in ${reference?.steps} steps with guidance ${reference?.guidance}: ${reference?.evaluations} evaluations.`,
    "",
    tableRow(["", ...COLUMNS.map(({ title }) => title)]),
    tableRow(["---", ...COLUMNS.map(() => "---:")]),
    ...rows.map(({ configuration: { label }, measured, missing }) =>
      tableRow([
        measured
          ? label
          : `${label}: not measured, ${missing.map((path) => `\`${path}\``).join(", ")} missing`,
        ...COLUMNS.map(({ cell }) => (measured && cell(measured)) ?? "–"),
      ]),
    ),
    tableRow(["real pictures", ...COLUMNS.map(({ title }) => realCell(title, first))]),
    "",
  );
  for (const { name, ...chart } of plotsOf(table, done)) {
    images.set(name, await plot(chart));
    lines.push(`![${chart.title}](images/${name})`, "");
  }
  const sheet = `results-${table.name}-pictures.png`;
  const prompts = first.pictures.map(({ label }) => label);
  images.set(
    sheet,
    await sideBySide(
      done.map(({ configuration: { label }, measured }) => ({
        label,
        pictures: measured.pictures.map(({ data }) => data),
      })),
      prompts,
    ),
  );
  lines.push(
    `![Pictures side by side](images/${sheet})`,
    "",
    "*One prompt and seed a column, nothing picked by hand.*",
    "",
  );
  return lines.join("\n");
}

function plotsOf({ name }: Table, rows: readonly Done[]): (Plot & { name: string })[] {
  const of = (pick: (m: Measured) => [number, number | undefined]): Plot["lines"] => {
    const series = new Map<string, [number, number][]>();
    for (const { configuration, measured } of rows) {
      const [x, y] = pick(measured);
      if (configuration.series === undefined || y === undefined || y <= 0 || x <= 0) continue;
      series.set(configuration.series, [...(series.get(configuration.series) ?? []), [x, y]]);
    }
    return [...series].map(([name, points]) => ({ name, points }));
  };
  const [{ measured: first }] = rows;
  const teacher = first.scores.teacher;
  const level = (value?: number) =>
    value ? { name: `teacher, ${first.result.reference?.steps} steps`, value } : undefined;
  const plots = [
    {
      ...{ name: "fd-to-teacher", title: "FD to the teacher's pictures", x: "steps", y: "FD to teacher" },
      lines: of(({ result, scores }) => [result.steps, scores.fd_to_teacher]),
    },
    {
      ...{ name: "patch-fd-to-teacher", title: "Patch FD to the teacher's pictures", x: "steps" },
      y: "patch FD to teacher",
      lines: of(({ result, scores }) => [result.steps, scores.patch_fd_to_teacher]),
    },
    {
      ...{ name: "fd", title: "FD to real pictures", x: "steps", y: "FD" },
      lines: of(({ result, scores }) => [result.steps, scores.fd]),
      level: level(teacher?.fd),
    },
    {
      ...{ name: "seconds", title: "Seconds a picture, in batches of 8", x: "steps", y: "seconds" },
      lines: of(({ result }) => [result.steps, result.seconds_per_picture]),
    },
  ];
  return plots
    .filter(({ lines }) => lines.length > 0)
    .map((chart) => ({ ...chart, name: `results-${name}-${chart.name}.png` }));
}

function realCell(title: string, { scores: { real } }: Measured): string {
  if (title === "CLIP score") return real.clip_score.toFixed(1);
  return title === "R@5" ? percent(real.r_at_5) : "–";
}

function missingText(rows: readonly Row[]): string {
  const paths = [...new Set(rows.flatMap(({ missing }) => missing))];
  return `${paths.map((path) => `\`${path}\``).join(", ")} missing.`;
}

function tableRow(cells: readonly string[]): string {
  return `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
}

/** Which files the numbers belong to. */
export function identities(tables: readonly TableResult[]): string {
  const files = new Map<string, string>();
  for (const { rows } of tables)
    for (const { measured } of measuredRows(rows))
      for (const [file, hash] of Object.entries(measured.files)) files.set(file, hash);
  if (files.size === 0) return "";
  return [
    "## Files",
    "",
    "| file or folder | SHA-256 begins with |",
    "|---|---|",
    ...[...files].map(([file, hash]) => `| ${file} | \`${hash.slice(0, 16)}\` |`),
    "",
  ].join("\n");
}
