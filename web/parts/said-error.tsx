/** @file What went wrong, as the page says it. */

import { Alert, Text } from "@mantine/core";
import { CircleAlert } from "lucide-react";

export function SaidError({ error }: { error?: string }) {
  if (error === undefined) return null;
  return (
    <Alert color="red" variant="light" icon={<CircleAlert aria-hidden />} role="alert">
      <Text size="sm" c="var(--mantine-color-text)">
        {error}
      </Text>
    </Alert>
  );
}
