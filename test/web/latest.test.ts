import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Latest } from "../../web/latest.ts";

beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }));
afterEach(() => void vi.useRealTimers());

/** Lets so many milliseconds pass. */
const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);

/** Work that takes so many milliseconds, and notes what became of each wish. */
function worker(ms: number | ((wish: number) => number)) {
  const notes: string[] = [];
  const latest = new Latest<number>(async (wish, signal) => {
    notes.push(`${wish} begins`);
    await new Promise<void>((resolve) => {
      setTimeout(resolve, typeof ms === "number" ? ms : ms(wish));
      signal.addEventListener("abort", () => resolve());
    });
    notes.push(`${wish} ${signal.aborted ? "cancelled" : "done"}`);
  });
  return { latest, notes };
}

test("quick work comes to its end while others wait, and only the last of them is done", async () => {
  const { latest, notes } = worker(20);
  for (let wish = 0; wish < 5; wish++) latest.ask(wish);
  await pass(200);
  expect(notes).toEqual(["0 begins", "0 done", "4 begins", "4 done"]);
});

test("slow work comes to its end while wishes come, and is cancelled when they pause", async () => {
  const { latest, notes } = worker(800);
  latest.ask(0);
  await pass(900);
  expect(latest.slow).toBe(true);
  for (let wish = 1; wish <= 5; wish++) {
    latest.ask(wish);
    await pass(40);
  }
  await pass(1200);
  expect(notes).toEqual(["0 begins", "0 done", "1 begins", "1 cancelled", "5 begins", "5 done"]);
});

test("slow work of which less than half is left is not cancelled", async () => {
  const { latest, notes } = worker(600);
  latest.ask(0);
  await pass(700);
  latest.ask(1);
  await pass(250);
  latest.ask(2);
  await pass(1200);
  expect(notes.slice(2)).toEqual(["1 begins", "1 done", "2 begins", "2 done"]);
});

test("what takes long begins in a pause, or at once when it is asked for", async () => {
  const { latest, notes } = worker(1200);
  latest.ask(0);
  await pass(1300);
  latest.ask(1);
  latest.ask(2);
  await pass(20);
  expect(notes.slice(2)).toEqual([]);
  await pass(300);
  expect(notes.slice(2)).toEqual(["2 begins"]);
  latest.ask(3, { now: true });
  await pass(20);
  expect(notes.slice(3)).toEqual(["2 cancelled", "3 begins"]);
  latest.cancel();
});

test("work that turns out to be slow is cancelled as well", async () => {
  const { latest, notes } = worker((wish) => (wish === 0 ? 5000 : 10));
  latest.ask(0);
  await pass(350);
  latest.ask(1);
  await pass(400);
  expect(notes).toEqual(["0 begins", "0 cancelled", "1 begins", "1 done"]);
});

test("cancelling ends what runs and forgets what waits", async () => {
  const { latest, notes } = worker(50);
  latest.ask(0);
  latest.ask(1);
  latest.cancel();
  await pass(150);
  expect(notes).toEqual(["0 begins", "0 cancelled"]);
  latest.ask(2);
  await pass(100);
  expect(notes.slice(2)).toEqual(["2 begins", "2 done"]);
});
