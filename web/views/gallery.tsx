/** @file The pictures that the browser keeps. */

import { ActionIcon, Alert, Box, Button, Group, Modal, Stack, Text, Tooltip } from "@mantine/core";
import { useHotkeys } from "@mantine/hooks";
import { ChevronLeft, ChevronRight, Images, PencilLine, Trash2 } from "lucide-react";
import { useState } from "react";
import { count } from "../format.ts";
import { gallery, type Kept } from "../gallery.ts";
import { PictureActions } from "../parts/actions.tsx";
import { Picture } from "../parts/picture.tsx";
import { useStore } from "../store.ts";

const THUMB = 128;
const MOST = 512;

/** @param open takes the settings of a picture */
export function Gallery({ open }: { open(picture: Kept): void }) {
  const pictures = useStore(gallery.pictures);
  const trouble = useStore(gallery.trouble);
  const [shown, setShown] = useState<number>();
  const [clearing, setClearing] = useState(false);
  const at = pictures.findIndex(({ id }) => id === shown);
  const go = (by: number): void => {
    const next = pictures[at + by];
    if (at >= 0 && next) setShown(next.id);
  };
  useHotkeys([
    ["ArrowLeft", () => go(-1)],
    ["ArrowRight", () => go(1)],
  ]);
  return (
    <Stack gap="md">
      {trouble !== undefined && <Alert color="orange">{trouble}</Alert>}
      {pictures.length === 0 ? (
        <Box className="hollow" mih={320}>
          <Images size={36} aria-hidden />
          <Text>Pictures that you draw are kept here, in this browser only.</Text>
        </Box>
      ) : (
        <>
          <Group justify="space-between">
            <Text size="sm" c="dimmed">
              {count(pictures.length, "picture")}, kept in this browser
            </Text>
            <Button
              variant="default"
              size="xs"
              leftSection={<Trash2 size={14} aria-hidden />}
              onClick={() => setClearing(true)}
            >
              Delete all
            </Button>
          </Group>
          <ul className="thumbs">
            {pictures.map(({ id, url, settings }) => (
              <li key={id}>
                <button type="button" className="thumb" onClick={() => setShown(id)} title={settings.prompt}>
                  <Picture src={url} alt={settings.prompt} size={settings} most={THUMB} />
                </button>
                <Text size="xs" c="dimmed" truncate px={2} aria-hidden>
                  {settings.prompt}
                </Text>
              </li>
            ))}
          </ul>
        </>
      )}
      <Shown
        picture={pictures[at]}
        close={() => setShown(undefined)}
        before={at > 0 ? () => go(-1) : undefined}
        after={at + 1 < pictures.length ? () => go(1) : undefined}
        open={open}
      />
      <Modal opened={clearing} onClose={() => setClearing(false)} title="Delete all pictures?" centered>
        <Text size="sm" mb="md">
          They are kept in this browser only, and cannot be brought back.
        </Text>
        <Group justify="end">
          <Button variant="default" onClick={() => setClearing(false)}>
            Keep them
          </Button>
          <Button
            color="red.9"
            onClick={() => {
              setClearing(false);
              void gallery.clear();
            }}
          >
            Delete all
          </Button>
        </Group>
      </Modal>
    </Stack>
  );
}

function Shown({
  picture,
  close,
  before,
  after,
  open,
}: {
  picture?: Kept;
  close(): void;
  before?: () => void;
  after?: () => void;
  open(picture: Kept): void;
}) {
  return (
    <Modal
      opened={picture !== undefined}
      onClose={close}
      size="auto"
      centered
      title={picture?.settings.prompt}
      closeButtonProps={{ "aria-label": "Close" }}
    >
      {picture && (
        <Stack gap="sm" align="center">
          <Picture src={picture.url} alt={picture.settings.prompt} size={picture.settings} most={MOST} />
          <Text size="sm" c="dimmed" className="numbers">
            {count(picture.settings.steps, "step")} · seed {picture.settings.seed} ·{" "}
            {new Date(picture.at).toLocaleString()}
          </Text>
          <Group justify="center" gap="xs">
            <Turn label="Newer" to={before} icon={<ChevronLeft size={16} aria-hidden />} />
            <Button
              size="xs"
              leftSection={<PencilLine size={14} aria-hidden />}
              onClick={() => {
                close();
                open(picture);
              }}
            >
              Draw on from it
            </Button>
            <PictureActions file={picture.file} url={picture.url} settings={picture.settings} />
            <Tooltip label="Delete">
              <ActionIcon
                variant="default"
                size={30}
                aria-label="Delete"
                onClick={() => {
                  if (after) after();
                  else if (before) before();
                  void gallery.remove(picture.id);
                }}
              >
                <Trash2 size={14} aria-hidden />
              </ActionIcon>
            </Tooltip>
            <Turn label="Older" to={after} icon={<ChevronRight size={16} aria-hidden />} />
          </Group>
        </Stack>
      )}
    </Modal>
  );
}

function Turn({ label, to, icon }: { label: string; to?: () => void; icon: React.ReactNode }) {
  return (
    <ActionIcon variant="default" size={30} aria-label={label} disabled={!to} onClick={to}>
      {icon}
    </ActionIcon>
  );
}
