/** @file The page: its views, and what they share. */

import {
  ActionIcon,
  Alert,
  Anchor,
  Center,
  Container,
  Group,
  Loader,
  Tabs,
  Title,
  Tooltip,
  useComputedColorScheme,
  useMantineColorScheme,
} from "@mantine/core";
import { useColorScheme, useHash, useLocalStorage } from "@mantine/hooks";
import { Moon, Sun } from "lucide-react";
import { lazy, Suspense, useEffect, useMemo, useState } from "react";
import { studio } from "./easel.ts";
import { Connection } from "./parts/connection.tsx";
import { PictureDrop } from "./parts/drop.tsx";
import { type Model, server } from "./server.ts";
import { fitted, type Lora, type Offers, type Settings } from "./settings.ts";
import { Compare } from "./views/compare.tsx";
import { Draw } from "./views/draw.tsx";
import { Gallery } from "./views/gallery.tsx";

/** Milliseconds after which is asked again what the server refused to say. */
const AGAIN_MS = 5000;

export function App() {
  const [offers, setOffers] = useState<Offers>();
  const [error, setError] = useState<string>();
  useEffect(() => {
    let leave = new AbortController();
    let again: ReturnType<typeof setTimeout>;
    const load = async (): Promise<void> => {
      leave.abort();
      clearTimeout(again);
      leave = new AbortController();
      const { signal } = leave;
      try {
        setOffers(await loadOffers(signal));
        setError(undefined);
      } catch (why) {
        if (signal.aborted) return;
        setError((why as Error).message);
        again = setTimeout(load, AGAIN_MS);
      }
    };
    let before = server.standing.get().is;
    const end = server.standing.subscribe(() => {
      const { is } = server.standing.get();
      if (before === "lost" && is === "ready") void load(); // it may offer something else now
      before = is;
    });
    void load();
    return () => {
      end();
      leave.abort();
      clearTimeout(again);
    };
  }, []);
  return (
    <Container size={1240} px="md" pb="xl">
      <Connection />
      {error && <Alert color="red">{error}</Alert>}
      {offers ? <Views offers={offers} /> : !error && <Waiting />}
    </Container>
  );
}

async function loadOffers(signal: AbortSignal): Promise<Offers> {
  const [{ models }, { loras }] = await Promise.all([
    server.json<{ models: Model[] }>("/api/models", { signal }),
    server.json<{ loras: Lora[] }>("/api/loras", { signal }),
  ]);
  return { models, loras };
}

function Views({ offers }: { offers: Offers }) {
  const [hash, setHash] = useHash({ getInitialValueInEffect: false });
  const [stored, setStored] = useLocalStorage<Partial<Settings>>({
    key: "fewstep.settings",
    defaultValue: {},
    getInitialValueInEffect: false,
  });
  const [live, setLive] = useLocalStorage({
    key: "fewstep.live",
    defaultValue: true,
    getInitialValueInEffect: false,
  });
  const [locked, setLocked] = useLocalStorage({
    key: "fewstep.locked",
    defaultValue: true,
    getInitialValueInEffect: false,
  });
  const settings = useMemo(() => fitted(stored, offers), [stored, offers]);
  const change = (part: Partial<Settings>): void => setStored({ ...settings, ...part });
  const view = VIEWS.find((name) => `#${name.toLowerCase()}` === hash) ?? VIEWS[0];
  const adopt = (next: Settings, file: Blob): void => {
    change(next);
    setHash("draw");
    studio.show(next, file);
  };
  return (
    <Tabs value={view} onChange={(name) => setHash(name?.toLowerCase() ?? "")} keepMounted={false}>
      <header className="head">
        <Title order={1} size="h3">
          fewstep
        </Title>
        <Tabs.List aria-label="Views" className="views">
          {VIEWS.map((name) => (
            <Tabs.Tab key={name} value={name}>
              {name}
            </Tabs.Tab>
          ))}
        </Tabs.List>
        <SchemeToggle />
      </header>
      <main>
        <Tabs.Panel value="Draw">
          <Draw
            settings={settings}
            offers={offers}
            live={live}
            locked={locked}
            change={change}
            setLive={setLive}
            setLocked={setLocked}
          />
        </Tabs.Panel>
        <Tabs.Panel value="Compare">
          <Compare settings={settings} offers={offers} change={change} />
        </Tabs.Panel>
        <Tabs.Panel value="Gallery">
          <Gallery open={({ settings: wanted, file }) => adopt(fitted({ ...wanted }, offers), file)} />
        </Tabs.Panel>
        <Tabs.Panel value="Training">
          <Suspense fallback={<Waiting />}>
            <Training />
          </Suspense>
        </Tabs.Panel>
      </main>
      <Group component="footer" justify="space-between" mt="xl">
        <PictureDrop offers={offers} take={adopt} />
        <Anchor href="/docs" size="xs">
          The API
        </Anchor>
      </Group>
    </Tabs>
  );
}

const VIEWS = ["Draw", "Compare", "Gallery", "Training"] as const;

/** With its charts, fetched when it is wanted. */
const Training = lazy(async () => ({ default: (await import("./views/training.tsx")).Training }));

function Waiting() {
  return (
    <Center h="60vh">
      <Loader aria-label="Loading" />
    </Center>
  );
}

/** Light or dark as the system has it, until someone wants the other. */
function SchemeToggle() {
  const { setColorScheme } = useMantineColorScheme();
  const system = useColorScheme();
  const now = useComputedColorScheme(system, { getInitialValueInEffect: false });
  const other = now === "dark" ? "light" : "dark";
  return (
    <Tooltip label={`To ${other}`}>
      <ActionIcon
        variant="default"
        size="lg"
        aria-label={`To ${other} colours`}
        onClick={() => setColorScheme(other === system ? "auto" : other)}
      >
        {now === "dark" ? <Sun size={16} aria-hidden /> : <Moon size={16} aria-hidden />}
      </ActionIcon>
    </Tooltip>
  );
}
