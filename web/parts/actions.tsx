/** @file What can be done with a picture: download, copy its settings. */

import { Button, CopyButton, Group } from "@mantine/core";
import { Check, Copy, Download } from "lucide-react";
import { useEffect, useState } from "react";
import { parametersOf, type Settings } from "../settings.ts";

/** A file name that tells what it is. */
function nameOf({ prompt, seed }: Settings): string {
  const words = prompt
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "")
    .slice(0, 40);
  return `${words || "picture"}-${seed}.png`;
}

export function PictureActions({ file, url, settings }: { file: Blob; url: string; settings: Settings }) {
  const [text, setText] = useState("");
  useEffect(() => {
    let shown = true;
    parametersOf(file).then(
      (found) => shown && setText(found),
      () => shown && setText(settings.prompt),
    );
    return () => {
      shown = false;
    };
  }, [file, settings]);
  return (
    <Group gap="xs">
      <Button
        component="a"
        href={url}
        download={nameOf(settings)}
        variant="default"
        size="xs"
        leftSection={<Download size={14} aria-hidden />}
      >
        Download
      </Button>
      <CopyButton value={text}>
        {({ copied, copy }) => (
          <Button
            variant="default"
            size="xs"
            onClick={copy}
            leftSection={copied ? <Check size={14} aria-hidden /> : <Copy size={14} aria-hidden />}
          >
            {copied ? "Copied" : "Copy settings"}
          </Button>
        )}
      </CopyButton>
    </Group>
  );
}
