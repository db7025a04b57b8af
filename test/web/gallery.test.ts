import { expect, test, vi } from "vitest";

const db = vi.hoisted(() => ({
  getAll: async () => [],
  add: vi.fn<() => Promise<number>>().mockResolvedValue(1),
  clear: async () => {},
}));
vi.mock("idb", () => ({ openDB: async () => db }));

test("a picture for which there is no room is shown all the same, and it is said", async () => {
  const { gallery } = await import("../../web/gallery.ts");
  const shown = () => gallery.pictures.get().map(({ at }) => at);
  const add = (at: number) => gallery.add([{ at, settings: {} as never, file: new Blob() }]);
  await add(1);
  expect(gallery.trouble.get()).toBeUndefined();
  db.add.mockRejectedValueOnce(new DOMException("full", "QuotaExceededError"));
  await add(2);
  expect(shown()).toEqual([2, 1]);
  expect(gallery.trouble.get()).toMatch(/did not keep all of these pictures/);
  await gallery.clear();
  expect([shown(), gallery.trouble.get()]).toEqual([[], undefined]);
});
