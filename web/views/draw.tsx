/** @file Pictures while you type. */

import { Box, Button, Group, Kbd, Progress, Stack, Text, Textarea, VisuallyHidden } from "@mantine/core";
import { useHotkeys } from "@mantine/hooks";
import { PencilLine, Square } from "lucide-react";
import { type KeyboardEvent, useRef } from "react";
import { type Easel, studio } from "../easel.ts";
import { count, duration, evaluations, workMs } from "../format.ts";
import { gallery } from "../gallery.ts";
import { PictureActions } from "../parts/actions.tsx";
import { Controls } from "../parts/controls.tsx";
import { Hollow, Picture } from "../parts/picture.tsx";
import { SaidError } from "../parts/said-error.tsx";
import type { Job } from "../server.ts";
import { modelOf, type Offers, randomSeed, type Settings } from "../settings.ts";
import { useStore } from "../store.ts";

const EXAMPLES = ["a red apple", "a yellow star", "a house", "a cat face", "a rocket", "a blue heart"];
/** Screen pixels of a single picture, and of one in a grid. */
const MOST = 512;
const MOST_IN_GRID = 256;

export interface DrawProps {
  settings: Settings;
  offers: Offers;
  live: boolean;
  locked: boolean;
  change(part: Partial<Settings>): void;
  setLive(live: boolean): void;
  setLocked(locked: boolean): void;
}

export function Draw({ settings, offers, live, locked, change, setLive, setLocked }: DrawProps) {
  const easel = useStore(studio.easel);
  const box = useRef<HTMLTextAreaElement>(null);
  const canDraw = settings.prompt.trim() !== "";

  const wish = (part: Partial<Settings>): void => {
    const next = { ...settings, ...part };
    change(part);
    if (live && !easel.slow && next.prompt.trim() !== "") studio.draw(next, offers);
  };
  const draw = (): void => {
    if (!canDraw) return;
    const next = locked ? settings : { ...settings, seed: randomSeed() };
    if (!locked) change({ seed: next.seed });
    studio.draw(next, offers, { keep: true });
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Escape") studio.cancel();
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    draw();
  };
  useHotkeys([
    ["/", () => box.current?.focus()],
    ["Escape", () => studio.cancel()],
  ]);

  return (
    <div className="draw">
      <Stack className="prompt" gap="sm">
        <Textarea
          ref={box}
          label="Prompt"
          placeholder="a red apple"
          autosize
          minRows={2}
          maxRows={8}
          size="md"
          maxLength={2000}
          autoFocus
          value={settings.prompt}
          onChange={(event) => wish({ prompt: event.currentTarget.value })}
          onKeyDown={onKey}
        />
        <Group justify="space-between">
          <Text size="xs" c="dimmed" visibleFrom="sm">
            <Kbd size="xs">Enter</Kbd> draws, <Kbd size="xs">Esc</Kbd> stops, <Kbd size="xs">/</Kbd> to the
            prompt
          </Text>
          <Group gap="xs">
            {easel.busy && (
              <Button
                className="late"
                variant="default"
                leftSection={<Square size={14} aria-hidden />}
                onClick={() => studio.cancel()}
              >
                Stop
              </Button>
            )}
            <Button leftSection={<PencilLine size={16} aria-hidden />} onClick={draw} disabled={!canDraw}>
              Draw
            </Button>
          </Group>
        </Group>
      </Stack>
      <Box className="controls surface" p="md">
        <Controls
          settings={settings}
          offers={offers}
          change={wish}
          live={live}
          slow={easel.slow}
          setLive={setLive}
          locked={locked}
          setLocked={setLocked}
        />
      </Box>
      <Result easel={easel} settings={settings} offers={offers} suggest={(prompt) => wish({ prompt })} />
    </div>
  );
}

function Result({
  easel,
  settings,
  offers,
  suggest,
}: {
  easel: Easel;
  settings: Settings;
  offers: Offers;
  suggest(prompt: string): void;
}) {
  const { pictures, job, error, files, said } = easel;
  const shown = easel.settings ?? settings;
  const model = modelOf(settings, offers);
  return (
    <Stack className="result" gap="md">
      <SaidError error={error} />
      <Box className="surface" p="md">
        <Stack gap="sm">
          {pictures.length === 0 ? (
            <div className="frame">
              <Hollow size={model} most={MOST}>
                <PencilLine size={36} aria-hidden />
                <Text>Type what you want to see.</Text>
                <Group gap="xs" justify="center">
                  {EXAMPLES.map((prompt) => (
                    <Button
                      key={prompt}
                      variant="default"
                      size="compact-sm"
                      radius="xl"
                      onClick={() => suggest(prompt)}
                    >
                      {prompt}
                    </Button>
                  ))}
                </Group>
              </Hollow>
            </div>
          ) : (
            <Pictures pictures={pictures} settings={shown} />
          )}
          <div className="stacked">
            {job && <Caption job={job} />}
            <Waiting easel={easel} />
          </div>
          {files.length === 1 && easel.settings && (
            <Group justify="center" style={{ visibility: easel.isPreview ? "hidden" : undefined }}>
              <PictureActions file={files[0]} url={pictures[0]} settings={shown} />
            </Group>
          )}
        </Stack>
      </Box>
      <Recent />
      <VisuallyHidden role="status">{said}</VisuallyHidden>
    </Stack>
  );
}

function Pictures({ pictures, settings }: { pictures: readonly string[]; settings: Settings }) {
  const many = pictures.length > 1;
  return (
    <Group justify="center" gap="sm" className="pictures">
      {pictures.map((url, i) => (
        <Picture
          // biome-ignore lint/suspicious/noArrayIndexKey: the place stays, what is shown there changes
          key={i}
          src={url}
          alt={many ? `${settings.prompt}, picture ${i + 1}` : settings.prompt}
          size={settings}
          most={many ? MOST_IN_GRID : MOST}
        />
      ))}
    </Group>
  );
}

/** Of jobs that take a while. */
function Waiting({ easel: { busy, position, progress } }: { easel: Easel }) {
  if (!busy) return null;
  const share = progress ? (100 * progress.step) / progress.of : 0;
  const words = position
    ? `${count(position, "job")} before this one`
    : progress
      ? `Step ${progress.step} of ${progress.of}`
      : "Waiting for the server";
  return (
    <div className="late">
      <Progress value={share} size="xs" aria-label="Progress" transitionDuration={100} mb={6} />
      <Text size="sm" c="dimmed" ta="center" className="numbers">
        {words}
      </Text>
    </div>
  );
}

function Caption({ job }: { job: Job }) {
  const [first] = job.pictures;
  if (!first) return null;
  const parts = [
    duration(workMs(job)),
    count(first.steps, "step"),
    count(evaluations(first), "evaluation"),
    `seed ${first.seed}`,
  ];
  return (
    <div>
      <Text size="sm" c="dimmed" ta="center" className="numbers caption">
        {parts.join(" · ")}
      </Text>
      {job.warnings.map((warning) => (
        <Text key={warning} size="sm" ta="center">
          {warning}
        </Text>
      ))}
    </div>
  );
}

/** The last pictures that were kept. */
function Recent() {
  const pictures = useStore(gallery.pictures).slice(0, 12);
  if (pictures.length === 0) return null;
  return (
    <section aria-label="Last pictures">
      <Group gap={4}>
        {pictures.map(({ id, url, settings, file }) => (
          <button
            key={id}
            type="button"
            className="thumb"
            onClick={() => studio.show(settings, file)}
            title={settings.prompt}
          >
            <Picture src={url} alt={`Show ${settings.prompt}`} size={settings} most={64} />
          </button>
        ))}
      </Group>
    </section>
  );
}
