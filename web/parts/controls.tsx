/** @file How a picture is made: only what has an effect on the chosen model. */

import {
  ActionIcon,
  Group,
  Input,
  MultiSelect,
  NumberInput,
  SegmentedControl,
  Select,
  Slider,
  Stack,
  Switch,
  Textarea,
  TextInput,
  Tooltip,
} from "@mantine/core";
import { Lock, LockOpen, Shuffle } from "lucide-react";
import { useId } from "react";
import {
  fewSteps,
  isGuided,
  MOST_PICTURES,
  MOST_STEPS,
  modelOf,
  type Offers,
  randomSeed,
  type Settings,
  settingsFor,
  sizesOf,
} from "../settings.ts";

export interface ControlsProps {
  settings: Settings;
  offers: Offers;
  change(part: Partial<Settings>): void;
}

export function Controls({
  settings,
  offers,
  change,
  live,
  slow,
  setLive,
  locked,
  setLocked,
}: ControlsProps & {
  live: boolean;
  /** Too slow for that. */
  slow: boolean;
  setLive(live: boolean): void;
  locked: boolean;
  setLocked(locked: boolean): void;
}) {
  const model = modelOf(settings, offers);
  const guided = isGuided(settings, offers);
  return (
    <Stack gap="md">
      {offers.models.length > 1 && (
        <Select
          label="Model"
          data={offers.models.map(({ name }) => name)}
          value={model.name}
          allowDeselect={false}
          onChange={(name) => {
            const { prompt, ...own } = settingsFor(modelOf({ model: name ?? "" }, offers), settings);
            change(own);
          }}
        />
      )}
      <Steps settings={settings} offers={offers} change={change} />
      {guided && (
        <NumberInput
          label="Guidance"
          description="How closely the prompt is followed; up to 1 it is off"
          min={0}
          max={100}
          step={0.5}
          decimalScale={2}
          value={settings.guidance}
          onChange={(value) => typeof value === "number" && change({ guidance: value })}
        />
      )}
      {guided && settings.guidance > 1 && (
        <Textarea
          label="Negative prompt"
          placeholder="What it should not show"
          autosize
          minRows={1}
          maxLength={2000}
          value={settings.negativePrompt}
          onChange={(event) => change({ negativePrompt: event.currentTarget.value })}
        />
      )}
      <Seed settings={settings} change={change} locked={locked} setLocked={setLocked} />
      <Size settings={settings} offers={offers} change={change} />
      <Labelled label="Pictures">
        {(id) => (
          <Slider
            min={1}
            max={MOST_PICTURES}
            value={settings.n}
            onChange={(n) => change({ n })}
            thumbProps={{ "aria-labelledby": id }}
            marks={[
              { value: 1, label: "1" },
              { value: 4, label: "4" },
              { value: MOST_PICTURES, label: "10" },
            ]}
            mb="md"
          />
        )}
      </Labelled>
      {offers.loras.length > 0 && <Loras settings={settings} offers={offers} change={change} />}
      <Switch
        label="Draw while typing"
        description={live && slow ? "Pictures take long with these settings: press Enter" : undefined}
        checked={live}
        onChange={(event) => setLive(event.currentTarget.checked)}
      />
    </Stack>
  );
}

/** Step counts that have a network of their own as one tap each, and any number for the model's own network. */
function Steps({ settings, offers, change }: ControlsProps) {
  const { base } = modelOf(settings, offers);
  const few = fewSteps(settings, offers);
  const own = !few.includes(settings.steps);
  const name = few.length === 0 ? "Steps" : "Steps of the teacher";
  return (
    <>
      {few.length > 0 && (
        <Labelled label="Steps">
          {(id) => (
            <SegmentedControl
              fullWidth
              aria-labelledby={id}
              data={[
                ...few.map((steps) => ({ value: String(steps), label: String(steps) })),
                { value: "own", label: "Teacher" },
              ]}
              value={own ? "own" : String(settings.steps)}
              onChange={(value) => change({ steps: value === "own" ? base.steps : Number(value) })}
            />
          )}
        </Labelled>
      )}
      {own && (
        <NumberInput
          label={name}
          min={1}
          max={MOST_STEPS}
          allowDecimal={false}
          value={settings.steps}
          onChange={(value) => typeof value === "number" && value >= 1 && change({ steps: value })}
        />
      )}
    </>
  );
}

function Seed({
  settings,
  change,
  locked,
  setLocked,
}: Pick<ControlsProps, "settings" | "change"> & { locked: boolean; setLocked(locked: boolean): void }) {
  const lock = locked ? "Take a new seed for each drawing" : "Keep this seed";
  return (
    <Group align="end" gap="xs" wrap="nowrap">
      <TextInput
        label="Seed"
        inputMode="numeric"
        flex={1}
        value={settings.seed}
        onChange={(event) => {
          const seed = event.currentTarget.value.replace(/\D/g, "").slice(0, 19);
          change({ seed: seed === "" ? "0" : String(BigInt(seed)) });
        }}
      />
      <Tooltip label={lock}>
        <ActionIcon
          size={36}
          variant={locked ? "light" : "default"}
          aria-label="Keep the seed"
          aria-pressed={locked}
          onClick={() => setLocked(!locked)}
        >
          {locked ? <Lock size={16} aria-hidden /> : <LockOpen size={16} aria-hidden />}
        </ActionIcon>
      </Tooltip>
      <Tooltip label="Another seed">
        <ActionIcon
          size={36}
          variant="default"
          aria-label="Another seed"
          onClick={() => change({ seed: randomSeed() })}
        >
          <Shuffle size={16} aria-hidden />
        </ActionIcon>
      </Tooltip>
    </Group>
  );
}

function Size({ settings, offers, change }: ControlsProps) {
  const sizes = sizesOf(modelOf(settings, offers));
  const { width, height } = settings;
  const all = sizes.some((size) => size.width === width && size.height === height)
    ? sizes
    : [...sizes, { width, height }];
  const key = (size: { width: number; height: number }): string => `${size.width}×${size.height}`;
  return (
    <Select
      label="Size"
      data={[...new Set(all.map(key))]}
      value={key(settings)}
      allowDeselect={false}
      onChange={(value) => {
        const size = all.find((one) => key(one) === value);
        if (size) change(size);
      }}
    />
  );
}

function Loras({ settings, offers, change }: ControlsProps) {
  const chosen = Object.entries(settings.loras);
  return (
    <Stack gap="xs">
      <MultiSelect
        label="LoRAs"
        placeholder={chosen.length === 0 ? "None" : undefined}
        data={offers.loras.map(({ name }) => name)}
        maxValues={8}
        value={chosen.map(([name]) => name)}
        onChange={(names) => {
          const loras = Object.fromEntries(names.map((name) => [name, settings.loras[name] ?? 1]));
          const added = names.find((name) => !Object.hasOwn(settings.loras, name));
          const steps = offers.loras.find(({ name }) => name === added)?.steps;
          change({ loras, ...(steps !== undefined && { steps }) });
        }}
      />
      {chosen.map(([name, strength]) => (
        <Labelled key={name} label={`Strength of ${name}: ${strength}`}>
          {(id) => (
            <Slider
              min={-1}
              max={2}
              step={0.05}
              value={strength}
              label={null}
              onChange={(value) =>
                change({ loras: { ...settings.loras, [name]: Math.round(value * 100) / 100 } })
              }
              thumbProps={{ "aria-labelledby": id }}
            />
          )}
        </Labelled>
      ))}
    </Stack>
  );
}

/** For controls that bring no label of their own. */
function Labelled({ label, children }: { label: string; children(id: string): React.ReactNode }) {
  const id = useId();
  return (
    <div>
      <Input.Label labelElement="div" id={id} mb={4}>
        {label}
      </Input.Label>
      {children(id)}
    </div>
  );
}
