/** @file Settings from a picture: dropped anywhere on the page, pasted, or chosen. */

import { Alert, Anchor, FileButton, Text } from "@mantine/core";
import { FileImage } from "lucide-react";
import { useEffect, useRef, useState } from "react";
import { type Offers, parametersOf, type Settings, settingsFrom } from "../settings.ts";

/** @param take gets the settings and the picture that they came from */
export function PictureDrop({
  offers,
  take,
}: {
  offers: Offers;
  take(settings: Settings, file: Blob): void;
}) {
  const [over, setOver] = useState(false);
  const [notes, setNotes] = useState<string[]>([]);
  const read = async (file: File | null | undefined): Promise<void> => {
    if (!file) return;
    try {
      const { settings, notes } = settingsFrom(await parametersOf(file), offers);
      setNotes(notes);
      take(settings, file);
    } catch (error) {
      setNotes([`${file.name}: ${(error as Error).message}`]);
    }
  };
  const current = useRef(read);
  current.current = read;
  useEffect(() => {
    const leave = new AbortController();
    const { signal } = leave;
    const carriesFile = ({ dataTransfer }: DragEvent) => dataTransfer?.types.includes("Files") ?? false;
    window.addEventListener(
      "dragover",
      (event) => {
        if (!carriesFile(event)) return;
        event.preventDefault();
        setOver(true);
      },
      { signal },
    );
    window.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget === null && setOver(false), {
      signal,
    });
    window.addEventListener(
      "drop",
      (event) => {
        if (!carriesFile(event)) return;
        event.preventDefault();
        setOver(false);
        void current.current(event.dataTransfer?.files[0]);
      },
      { signal },
    );
    window.addEventListener("paste", ({ clipboardData }) => void current.current(clipboardData?.files[0]), {
      signal,
    });
    return () => leave.abort();
  }, []);
  return (
    <>
      <Text size="xs" c="dimmed">
        Drop a PNG on the page to get its settings back, or{" "}
        <FileButton accept="image/png" onChange={read}>
          {(props) => (
            <Anchor component="button" type="button" size="xs" {...props}>
              choose one
            </Anchor>
          )}
        </FileButton>
        .
      </Text>
      <div role="status">
        {notes.length > 0 && (
          <Alert
            color="orange"
            variant="light"
            icon={<FileImage aria-hidden />}
            withCloseButton
            closeButtonLabel="Close"
            onClose={() => setNotes([])}
            mt="xs"
          >
            {notes.map((note) => (
              <Text key={note} size="sm" c="var(--mantine-color-text)">
                {note}
              </Text>
            ))}
          </Alert>
        )}
      </div>
      {over && <div className="dropping">Drop it to get its settings back</div>}
    </>
  );
}
