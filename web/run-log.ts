/** @file The log of a training run: rows as they come, and lines to draw. */

import type { z } from "zod";
import type { logPart } from "../src/serve/http/schemas.ts";

export type LogPart = z.output<typeof logPart>;
export type Row = LogPart["rows"][number];

export interface Line {
  name: string;
  /** Step and value. */
  points: readonly (readonly [number, number])[];
}

export interface ChartLines {
  title: string;
  lines: Line[];
}

/** What belongs together, by the names of the log; what nothing claims is a term of the loss. */
const CHARTS: readonly { title: string; has(name: string): boolean; exact?: true }[] = [
  { title: "Discriminator accuracy", has: (name) => name.startsWith("discriminator_accuracy") },
  { title: "Accuracy", has: (name) => /accuracy|agreement/.test(name) },
  { title: "Gradient norm", has: (name) => name.endsWith("grad_norm") },
  { title: "Learning rate", has: (name) => name === "learning_rate", exact: true },
  { title: "Pictures per second", has: (name) => name === "pictures_per_second", exact: true },
];
export const LOSS = "Loss";

/** The rows with those of a part: steps that were done again replace what they were before. */
export function withPart(rows: readonly Row[], { rows: added, from }: LogPart): Row[] {
  const all = from === 0 ? [] : [...rows];
  for (const row of added) {
    while (all.length > 0 && all[all.length - 1].step >= row.step) all.pop();
    all.push(row);
  }
  return all;
}

/** @param smoothing share of the average before in each point, 0 to 1 */
export function chartsOf(rows: readonly Row[], smoothing: number): ChartLines[] {
  const names = new Set(rows.flatMap((row) => Object.keys(row)));
  names.delete("step");
  const charts = new Map<string, Line[]>([LOSS, ...CHARTS.map(({ title }) => title)].map((t) => [t, []]));
  for (const name of names) {
    const { title = LOSS, exact = false } = CHARTS.find((chart) => chart.has(name)) ?? {};
    const points = rows.flatMap((row) => (name in row ? [[row.step, row[name]] as const] : []));
    charts.get(title)!.push({ name, points: exact ? points : smoothed(points, smoothing) });
  }
  return [...charts].map(([title, lines]) => ({ title, lines })).filter(({ lines }) => lines.length > 0);
}

/** An exponential average that begins at the first point without leaning to it (Kingma & Ba 2015, §3). */
function smoothed(points: Line["points"], share: number): Line["points"] {
  let average = 0;
  let weight = 0;
  return points.map(([step, value]) => {
    average = share * average + (1 - share) * value;
    weight = share * weight + (1 - share);
    return [step, average / weight];
  });
}
