import "../../src/platform/node.ts";
import { afterEach, expect, test } from "vitest";
import { WarmModels } from "../../src/serve/warm.ts";
import { TINY } from "./tiny.ts";

let models: WarmModels;
afterEach(() => models.dispose());

/** Loads what counts as 10 bytes. */
const get = (key: string) => models.get({ key, path: TINY, bytes: 10 });

test("models stay loaded; the one used longest ago makes room", async () => {
  models = new WarmModels({ device: "cpu", threads: 1, memoryLimit: 20 });
  const [a, b] = [await get("a"), await get("b")];
  expect(await get("a")).toBe(a);
  const c = await get("c"); // b goes
  expect(await get("a")).toBe(a);
  expect(await get("c")).toBe(c);
  expect(await get("b")).not.toBe(b);
});

test("one that is larger than the rest of the room takes the place of several", async () => {
  models = new WarmModels({ device: "cpu", threads: 1, memoryLimit: 20 });
  const [a, b] = [await get("a"), await get("b")];
  await models.get({ key: "large", path: TINY, bytes: 20 });
  expect(await get("b")).not.toBe(b);
  expect(await get("a")).not.toBe(a);
});
