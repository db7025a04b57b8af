/** @file The page: its views, and what they share. */

import {
  ActionIcon,
  Alert,
  Anchor,
  Box,
  Center,
  Container,
  Group,
  Loader,
  Tabs,
  Text,
  Title,
  Tooltip,
  useComputedColorScheme,
  useMantineColorScheme,
} from "@mantine/core";
import { useColorScheme, useHash, useLocalStorage } from "@mantine/hooks";
import { Moon, Sun } from "lucide-react";
import { useEffect, useMemo, useState } from "react";
import { Connection } from "./parts/connection.tsx";
import { type Model, server } from "./server.ts";
import { fitted, type Lora, type Offers, type Settings } from "./settings.ts";
import { Draw } from "./views/draw.tsx";

export function App() {
  const [offers, setOffers] = useState<Offers>();
  const [error, setError] = useState<string>();
  useEffect(() => {
    const leave = new AbortController();
    loadOffers(leave.signal).then(setOffers, (why: Error) => {
      if (!leave.signal.aborted) setError(why.message);
    });
    return () => leave.abort();
  }, []);
  return (
    <Container size={1240} px="md" pb="xl">
      <Connection />
      {error && <Alert color="red">{error}</Alert>}
      {offers ? (
        <Views offers={offers} />
      ) : (
        <Center h="60vh">
          <Loader aria-label="Loading" />
        </Center>
      )}
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
  return (
    <Tabs value={view} onChange={(name) => setHash(name?.toLowerCase() ?? "")} keepMounted={false}>
      <Group component="header" justify="space-between" py="md" gap="xs">
        <Title order={1} size="h3">
          fewstep
        </Title>
        <Group gap="xs">
          <Tabs.List>
            {VIEWS.map((name) => (
              <Tabs.Tab key={name} value={name}>
                {name}
              </Tabs.Tab>
            ))}
          </Tabs.List>
          <SchemeToggle />
        </Group>
      </Group>
      <Box component="main">
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
      </Box>
      <Text component="footer" size="xs" c="dimmed" mt="xl">
        The same over HTTP:{" "}
        <Anchor href="/docs" size="xs">
          the API
        </Anchor>
      </Text>
    </Tabs>
  );
}

const VIEWS = ["Draw"] as const;

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
