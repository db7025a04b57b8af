import { expect, test } from "vitest";
import { PriorityQueue } from "../../src/serve/queue.ts";

test("higher priorities first, equals in the order of arrival", () => {
  const queue = new PriorityQueue<string>();
  for (const [item, priority] of [
    ["a", 0],
    ["b", 0],
    ["c", 5],
    ["d", -1],
    ["e", 5],
  ] as const)
    queue.push(item, priority);
  expect([...queue].join("")).toBe("ceabd");
  queue.remove("a");
  queue.remove("a");
  expect(queue.size).toBe(4);
  expect([queue.shift(), queue.shift(), queue.shift(), queue.shift(), queue.shift()]).toEqual([
    "c",
    "e",
    "b",
    "d",
    undefined,
  ]);
});
