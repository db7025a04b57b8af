/** @file What is said when the server does not answer, and where its token is entered. */

import { Alert, Button, Modal, PasswordInput, Stack, Text } from "@mantine/core";
import { WifiOff } from "lucide-react";
import { type FormEvent, useState } from "react";
import { server } from "../server.ts";
import { useStore } from "../store.ts";

export function Connection() {
  const standing = useStore(server.standing);
  return (
    <>
      <div role="status">
        {standing.is === "lost" && (
          <Alert color="orange" variant="light" icon={<WifiOff aria-hidden />} mb="md">
            <Text size="sm" c="var(--mantine-color-text)">
              The server does not answer. Trying again until it is back; nothing is lost.
            </Text>
          </Alert>
        )}
      </div>
      <TokenEntry why={standing.is === "locked" ? standing.why : undefined} />
    </>
  );
}

function TokenEntry({ why }: { why?: string }) {
  const [token, setToken] = useState("");
  const enter = (event: FormEvent): void => {
    event.preventDefault();
    if (token.trim() !== "") server.unlock(token.trim());
  };
  return (
    <Modal
      opened={why !== undefined}
      onClose={() => {}}
      withCloseButton={false}
      title="This server wants a token"
      centered
    >
      <form onSubmit={enter}>
        <Stack>
          <PasswordInput
            label="Token"
            description="That the server was started with; this browser remembers it."
            error={why?.includes("wrong") ? "The token is wrong." : undefined}
            value={token}
            onChange={(event) => setToken(event.currentTarget.value)}
            autoComplete="current-password"
            data-autofocus
          />
          <Button type="submit" disabled={token.trim() === ""}>
            Enter
          </Button>
        </Stack>
      </form>
    </Modal>
  );
}
