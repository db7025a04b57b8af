/** @file Plots as PNG: ECharts renders SVG without a browser, librsvg paints it. */

import * as echarts from "echarts";
import sharp from "sharp";

export interface Plot {
  title: string;
  x: string;
  y: string;
  lines: readonly { name: string; points: readonly (readonly [number, number])[] }[];
  /** A value to compare with, across the whole width. */
  level?: { name: string; value: number };
}

/** Pixels; painted at twice the size. */
const [WIDTH, HEIGHT] = [720, 400];

/** The vertical axis is logarithmic; steps lie evenly. */
export async function plot({ title, x, y, lines, level }: Plot): Promise<Uint8Array> {
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width: WIDTH, height: HEIGHT });
  const values = lines.flatMap(({ points }) => points);
  const ticks = new Set(values.map(([at]) => at));
  const axis = { nameLocation: "middle" as const, splitLine: { lineStyle: { color: "#eee" } } };
  chart.setOption({
    animation: false,
    backgroundColor: "#fff",
    textStyle: { fontFamily: "sans-serif" },
    title: { text: title, left: "center", textStyle: { fontSize: 15 } },
    legend: { bottom: 0 },
    grid: { top: 44, left: 72, right: 28, bottom: 76 },
    xAxis: {
      ...axis,
      type: ticks.size <= 8 ? "category" : "log",
      data: [...ticks].sort((a, b) => a - b).map(String),
      name: x,
      nameGap: 26,
    },
    yAxis: {
      ...axis,
      type: "log",
      logBase: 2,
      name: y,
      nameGap: 48,
      min: powerBelow(Math.min(...levels(values, level))),
    },
    series: [
      ...lines.map(({ name, points }) => ({
        name,
        type: "line" as const,
        symbolSize: 8,
        data: [...points].sort(([a], [b]) => a - b).map(([at, value]) => [String(at), value]),
      })),
      ...(level
        ? [
            {
              name: level.name,
              type: "line" as const,
              symbol: "none",
              lineStyle: { type: "dashed" as const, color: "#888" },
              itemStyle: { color: "#888" },
              data: [...ticks].sort((a, b) => a - b).map((at) => [String(at), level.value]),
            },
          ]
        : []),
    ],
  });
  const svg = chart.renderToSVGString();
  chart.dispose(); // or its timer keeps the process alive
  return sharp(Buffer.from(svg), { density: 144 }).png({ palette: true }).toBuffer();
}

function levels(values: readonly (readonly [number, number])[], level: Plot["level"]): number[] {
  return [...values.map(([, value]) => value), ...(level ? [level.value] : [])].filter((v) => v > 0);
}

/** Of two, where the axis has its ticks. */
function powerBelow(value: number): number {
  return 2 ** Math.floor(Math.log2(value));
}
