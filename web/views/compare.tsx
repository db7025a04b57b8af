/** @file One prompt and seed at different step counts, side by side, and how fast each is. */

import {
  Badge,
  Box,
  Button,
  Chip,
  Group,
  Stack,
  Text,
  Textarea,
  TextInput,
  VisuallyHidden,
} from "@mantine/core";
import { Columns3, Square } from "lucide-react";
import { type FormEvent, useEffect, useState } from "react";
import { type Column, columnsOf, comparison, type Measured } from "../comparison.ts";
import { count, duration, evaluations, speed } from "../format.ts";
import { Hollow, Picture } from "../parts/picture.tsx";
import { SaidError } from "../parts/said-error.tsx";
import type { Offers, Settings } from "../settings.ts";
import { useStore } from "../store.ts";

const MOST = 256;

export function Compare({
  settings,
  offers,
  change,
}: {
  settings: Settings;
  offers: Offers;
  change(part: Partial<Settings>): void;
}) {
  const names = offers.models.map(({ name }) => name);
  const [chosen, setChosen] = useState<string[]>([settings.model]);
  const models = offers.models.filter(({ name }) => chosen.includes(name));
  const columns = columnsOf(models);
  const { busy, error, measured, said } = useStore(comparison.state);
  useEffect(() => () => comparison.stop(), []);
  const run = (event: FormEvent): void => {
    event.preventDefault();
    void comparison.run(columns, settings);
  };
  const few = models.some((model) => model.few_steps.length > 0 || model.base.distilled);
  return (
    <Stack gap="lg">
      <form onSubmit={run}>
        <Group align="end" gap="sm">
          <Textarea
            label="Prompt"
            autosize
            minRows={1}
            maxRows={4}
            flex="1 1 280px"
            maxLength={2000}
            value={settings.prompt}
            onChange={(event) => change({ prompt: event.currentTarget.value })}
          />
          <TextInput
            label="Seed"
            inputMode="numeric"
            w={150}
            value={settings.seed}
            onChange={(event) =>
              change({ seed: event.currentTarget.value.replace(/\D/g, "").slice(0, 19) || "0" })
            }
          />
          {busy ? (
            <Button
              variant="default"
              leftSection={<Square size={14} aria-hidden />}
              onClick={() => comparison.stop()}
            >
              Stop
            </Button>
          ) : (
            <Button
              type="submit"
              leftSection={<Columns3 size={16} aria-hidden />}
              disabled={settings.prompt.trim() === "" || columns.length === 0}
            >
              Compare
            </Button>
          )}
        </Group>
      </form>
      {names.length > 1 && (
        <Chip.Group multiple value={chosen} onChange={setChosen}>
          <Group gap="xs" role="group" aria-label="Models">
            {names.map((name) => (
              <Chip key={name} value={name} size="sm">
                {name}
              </Chip>
            ))}
          </Group>
        </Chip.Group>
      )}
      {!few && (
        <Text size="sm" c="dimmed">
          No few-step weights come with this model: its own network is shown at fewer steps, for which it was
          not made.
        </Text>
      )}
      <SaidError error={error} />
      <ul className="columns">
        {columns.map((column) => (
          <ColumnView
            key={column.key}
            column={column}
            measured={measured.get(column.key)}
            first={columns[0] && measured.get(columns[0].key)}
            slowest={Math.max(...[...measured.values()].map(({ ms }) => ms))}
            prompt={settings.prompt}
            withModel={models.length > 1}
          />
        ))}
      </ul>
      <VisuallyHidden role="status">{said}</VisuallyHidden>
    </Stack>
  );
}

function ColumnView({
  column,
  measured,
  first,
  slowest,
  prompt,
  withModel,
}: {
  column: Column;
  measured?: Measured;
  first?: Measured;
  slowest: number;
  prompt: string;
  withModel: boolean;
}) {
  const { model } = column;
  return (
    <Box component="li" className="surface column" p="sm">
      <Stack gap="xs">
        <Group justify="space-between" gap={4} mih={26} className="columnhead">
          <Text fw={650}>{column.title}</Text>
          {measured && first && measured !== first && (
            <Badge variant="filled" tt="none" size="lg">
              {speed(measured.ms, first.ms)}
            </Badge>
          )}
        </Group>
        {withModel && (
          <Text size="xs" c="dimmed">
            {model.name}
          </Text>
        )}
        <div className="frame">
          {measured ? (
            <Picture src={measured.url} alt={`${prompt}, ${column.title}`} size={model} most={MOST} />
          ) : (
            <Hollow size={model} most={MOST} />
          )}
        </div>
        <Group justify="space-between" gap={4} className="numbers">
          <Text size="lg" fw={600}>
            {measured ? duration(measured.ms) : "–"}
          </Text>
          <Text size="sm" c="dimmed">
            {count(measured ? evaluations(measured) : column.evaluations, "evaluation")}
          </Text>
        </Group>
        <div className="track" aria-hidden>
          <div className="bar" style={{ width: measured ? `${(100 * measured.ms) / slowest}%` : 0 }} />
        </div>
      </Stack>
    </Box>
  );
}
