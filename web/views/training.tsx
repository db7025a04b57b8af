/** @file Training runs while they go on: losses, accuracies, sample grids. */

import { Badge, Box, Code, Group, Progress, Select, Slider, Stack, Switch, Text } from "@mantine/core";
import { useLocalStorage } from "@mantine/hooks";
import { ChartLine } from "lucide-react";
import { useEffect, useMemo, useRef, useState } from "react";
import type { z } from "zod";
import type { run } from "../../src/serve/http/schemas.ts";
import { ago, figure } from "../format.ts";
import { Chart } from "../parts/chart.tsx";
import { SaidError } from "../parts/said-error.tsx";
import { chartsOf, LOSS, type LogPart, type Row, withPart } from "../run-log.ts";
import { server } from "../server.ts";

type Run = z.output<typeof run>;

/** Between two looks at the log, and at the list of runs. */
const LOOK_MS = 2000;
/** Seconds without a new row after which a run does not count as running. */
const QUIET = 120;

export function Training() {
  const { shown, runs, error: missing } = useRuns();
  const [chosen, setChosen] = useLocalStorage({ key: "fewstep.run", defaultValue: "" });
  const run = runs.find(({ name }) => name === chosen) ?? runs[0];
  const { rows, error } = useRows(run?.name);
  const [smoothing, setSmoothing] = useState(0.6);
  const [log, setLog] = useState(false);
  const charts = useMemo(() => chartsOf(rows, smoothing), [rows, smoothing]);
  const trouble = missing ?? error;
  if (trouble !== undefined) return <SaidError error={trouble} />;
  if (shown === undefined) return null;
  if (!run) return <Nothing shown={shown} />;
  return (
    <Stack gap="md">
      <Group align="end" gap="md">
        <Select
          label="Run"
          flex="1 1 260px"
          searchable
          allowDeselect={false}
          data={runs.map(({ name }) => name)}
          value={run.name}
          onChange={(name) => name && setChosen(name)}
        />
        <Box w={170}>
          <Text size="sm" mb={6} id="smoothing">
            Smoothing
          </Text>
          <Slider
            min={0}
            max={0.98}
            step={0.02}
            value={smoothing}
            onChange={setSmoothing}
            thumbProps={{ "aria-labelledby": "smoothing" }}
            mb={12}
          />
        </Box>
        <Switch
          label="Logarithmic loss"
          checked={log}
          onChange={(event) => setLog(event.currentTarget.checked)}
          mb={8}
        />
      </Group>
      <Summary run={run} last={rows.at(-1)} />
      <div className="charts">
        {charts.map(({ title, lines }) => (
          <section key={title} className="surface chartbox" aria-label={title}>
            <Text component="h2" size="sm" fw={650} mb={4}>
              {title}
            </Text>
            <Chart title={title} lines={lines} log={log && title === LOSS} />
          </section>
        ))}
      </div>
      {run.samples.length > 0 && <Samples run={run} />}
    </Stack>
  );
}

function Summary({ run, last }: { run: Run; last?: Row }) {
  const seconds = Date.now() / 1000 - run.updated_at;
  const done = last ? last.step + 1 : 0;
  return (
    <Box className="surface" p="md">
      <Group gap="lg" className="numbers">
        <Badge
          variant="light"
          color={seconds < QUIET ? "green" : "gray"}
          tt="none"
          size="lg"
          className="state"
        >
          {seconds < QUIET ? "Running" : `Quiet for ${ago(seconds)}`}
        </Badge>
        <Text size="sm">
          Step <b>{done.toLocaleString("en")}</b>
          {run.steps !== undefined && ` of ${run.steps.toLocaleString("en")}`}
        </Text>
        {last && (
          <Text size="sm">
            Loss <b>{figure(last.loss ?? 0)}</b>
          </Text>
        )}
        {last?.pictures_per_second !== undefined && (
          <Text size="sm">
            <b>{figure(last.pictures_per_second)}</b> pictures/s
          </Text>
        )}
      </Group>
      {run.steps !== undefined && (
        <Progress
          value={Math.min(100, (100 * done) / run.steps)}
          size="sm"
          mt="sm"
          aria-label="Share of the steps that are done"
        />
      )}
    </Box>
  );
}

function Nothing({ shown }: { shown: boolean }) {
  return (
    <Box className="hollow" mih={320}>
      <ChartLine size={36} aria-hidden />
      {shown ? (
        <Text>No run has written a log yet.</Text>
      ) : (
        <Text>
          Start the server with <Code>fewstep serve --runs runs</Code> to follow what{" "}
          <Code>fewstep train</Code> and <Code>fewstep distill</Code> do.
        </Text>
      )}
    </Box>
  );
}

/** The last grid, and those before it. */
function Samples({ run }: { run: Run }) {
  const { name, samples } = run;
  const [back, setBack] = useState(0);
  const step = samples[Math.max(0, samples.length - 1 - back)];
  const [url, setUrl] = useState<string>();
  useEffect(() => {
    const leave = new AbortController();
    let made: string | undefined;
    server
      .request(`/api/runs/${encodeURIComponent(name)}/samples/${step}`, { signal: leave.signal })
      .then((answer) => answer.blob())
      .then(
        (file) => {
          made = URL.createObjectURL(file);
          setUrl(made);
        },
        () => {},
      );
    return () => {
      leave.abort();
      if (made) URL.revokeObjectURL(made);
    };
  }, [name, step]);
  return (
    <section className="surface chartbox" aria-label="Samples">
      <Text component="h2" size="sm" fw={650} mb="xs" id="samples">
        Samples after step {step.toLocaleString("en")}
      </Text>
      {samples.length > 1 && (
        <Slider
          min={0}
          max={samples.length - 1}
          value={samples.length - 1 - back}
          onChange={(at) => setBack(samples.length - 1 - at)}
          label={(at) => samples[at]}
          thumbProps={{ "aria-labelledby": "samples" }}
          mb="sm"
        />
      )}
      {url && <img src={url} alt={`Samples of ${name} after step ${step}`} className="samples" />}
    </section>
  );
}

interface Runs {
  shown?: boolean;
  runs: readonly Run[];
}

function useRuns(): Runs & { error?: string } {
  const [state, setState] = useState<Runs>({ runs: [] });
  const error = useRepeated(async (signal) => setState(await server.json("/api/runs", { signal })));
  return { ...state, error };
}

function useRows(name: string | undefined): { rows: readonly Row[]; error?: string } {
  const [log, setLog] = useState<{ of?: string; rows: readonly Row[]; next: number }>({ rows: [], next: 0 });
  const current = log.of === name ? log : { of: name, rows: [], next: 0 };
  const error = useRepeated(async (signal) => {
    if (name === undefined) return;
    let { rows, next }: { rows: readonly Row[]; next: number } = current;
    for (let more = true; more; ) {
      const part: LogPart = await server.json(`/api/runs/${encodeURIComponent(name)}/log?from=${next}`, {
        signal,
      });
      if (part.from !== next || part.rows.length > 0) rows = withPart(rows, part);
      more = part.more && part.next > part.from;
      next = part.next;
    }
    if (next !== current.next || rows !== current.rows) setLog({ of: name, rows, next });
  }, name);
  return { rows: current.rows, error };
}

/** Does something again and again while the view is open, and at once when `about` changes; gives what went wrong. */
function useRepeated(work: (signal: AbortSignal) => Promise<void>, about?: string): string | undefined {
  const [error, setError] = useState<string>();
  const current = useRef(work);
  current.current = work;
  // biome-ignore lint/correctness/useExhaustiveDependencies: it begins anew with another `about`
  useEffect(() => {
    const leave = new AbortController();
    const { signal } = leave;
    let timer: ReturnType<typeof setTimeout>;
    const look = async (): Promise<void> => {
      try {
        await current.current(signal);
        setError(undefined);
      } catch (why) {
        if (signal.aborted) return;
        setError((why as Error).message);
      }
      timer = setTimeout(look, LOOK_MS);
    };
    void look();
    return () => {
      leave.abort();
      clearTimeout(timer);
    };
  }, [about]);
  return error;
}
