/** @file Lines over the steps of a run. */

import { useComputedColorScheme } from "@mantine/core";
import { LineChart } from "echarts/charts";
import { GridComponent, LegendComponent, TooltipComponent } from "echarts/components";
import { type ECharts, init, use } from "echarts/core";
import { CanvasRenderer } from "echarts/renderers";
import { useEffect, useRef } from "react";
import { figure } from "../format.ts";
import type { Line } from "../run-log.ts";

use([LineChart, GridComponent, LegendComponent, TooltipComponent, CanvasRenderer]);

const COLOURS = {
  light: { lines: ["#3b5bdb", "#c2255c", "#2b8a3e", "#e8590c", "#5f3dc4"], text: "#495057", grid: "#e9ecef" },
  dark: { lines: ["#91a7ff", "#f783ac", "#8ce99a", "#ffc078", "#b197fc"], text: "#adb5bd", grid: "#31353d" },
};

export function Chart({ title, lines, log }: { title: string; lines: readonly Line[]; log?: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  const chart = useRef<ECharts>(undefined);
  const scheme = useComputedColorScheme("light", { getInitialValueInEffect: false });
  useEffect(() => {
    const made = init(place.current!, null, { renderer: "canvas" });
    chart.current = made;
    const observer = new ResizeObserver(() => made.resize());
    observer.observe(place.current!);
    return () => {
      observer.disconnect();
      made.dispose();
    };
  }, []);
  useEffect(() => {
    const { lines: colours, text, grid } = COLOURS[scheme];
    const axis = { axisLabel: { color: text, formatter: figure }, axisLine: { lineStyle: { color: grid } } };
    const positive = lines.every(({ points }) => points.every(([, value]) => value > 0));
    chart.current?.setOption(
      {
        animation: false,
        color: colours,
        textStyle: { fontFamily: "inherit", color: text },
        grid: { top: 12, left: 52, right: 16, bottom: lines.length > 1 ? 52 : 28 },
        legend: {
          show: lines.length > 1,
          bottom: 0,
          icon: "roundRect",
          itemHeight: 4,
          textStyle: { color: text },
        },
        tooltip: {
          trigger: "axis",
          confine: true,
          valueFormatter: (value: unknown) => (typeof value === "number" ? value.toPrecision(4) : ""),
        },
        xAxis: { ...axis, type: "value", min: "dataMin", max: "dataMax", splitLine: { show: false } },
        yAxis: {
          ...axis,
          type: log && positive ? "log" : "value",
          scale: lines.some(({ points }) => points.some(([, value]) => value !== points[0][1])),
          splitLine: { lineStyle: { color: grid } },
        },
        series: lines.map(({ name, points }) => ({
          name: name.replaceAll("_", " "),
          type: "line" as const,
          data: points as [number, number][],
          showSymbol: points.length < 3,
          sampling: "lttb",
          lineStyle: { width: 1.75 },
        })),
      },
      { notMerge: true },
    );
  }, [lines, log, scheme]);
  const last = lines.map(
    ({ name, points }) => `${name.replaceAll("_", " ")} ${figure(points.at(-1)?.[1] ?? 0)}`,
  );
  return <div ref={place} role="img" aria-label={`${title}; last: ${last.join(", ")}`} className="chart" />;
}
