/**
 * @file The page in a browser while someone types: milliseconds from the last key to the picture of what is then there, and
 * pictures in a second on the way. Needs chromium and a built page (`npm run build`). The model is the bundled one, or
 * MODEL, at its own step count, or STEPS.
 */

import process from "node:process";
import { openBrowser } from "../scripts/browser.ts";
import { serve } from "../scripts/served.ts";
import { bundledModel } from "../src/index.node.ts";
import { machine } from "./machine.ts";

const ROUNDS = Number(process.env.ROUNDS ?? 9);
const STEPS = process.env.STEPS;
const WARM_UP = 1;
/** Milliseconds between two keys: a quick typist. */
const BETWEEN = 80;
const TEXTS = ["a red apple with a green leaf, flat style", "a smiling yellow face, noto style, on white"];

/** Notes in the page when something is typed, and when a picture is there. */
const WATCH = `
  window.typed = []; window.shown = [];
  document.addEventListener("input", () => typed.push(performance.now()), true);
  document.addEventListener("load", ({ target }) => { // of elements: it does not reach the window
    if (!target.matches(".pictures img")) return;
    shown.push({ at: performance.now(), alt: target.alt, preview: target.src.startsWith("data:") });
  }, true);
  ${STEPS === undefined ? "" : `localStorage.setItem("fewstep.settings", JSON.stringify({ steps: ${Number(STEPS)} }));`}
`;

interface Seen {
  typed: number[];
  shown: { at: number; alt: string; preview: boolean }[];
}

const model = process.env.MODEL ?? bundledModel();
await using server = await serve("--model", `bench=${model}`);
const browser = await openBrowser();
const latencies: number[] = [];
const rates: number[] = [];
try {
  const page = await browser.newPage();
  await page.addInitScript({ content: WATCH });
  await page.goto(server.url);
  const prompt = page.getByRole("textbox", { name: "Prompt", exact: true });
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    const text = TEXTS[Math.abs(round) % TEXTS.length];
    await prompt.fill("");
    await page.evaluate("typed.length = shown.length = 0");
    await prompt.pressSequentially(text, { delay: BETWEEN });
    const done = `shown.some(({ alt, preview }) => alt === ${JSON.stringify(text)} && !preview)`;
    while (!(await page.evaluate(done))) await page.waitForTimeout(50);
    const { typed, shown } = (await page.evaluate("({ typed, shown })")) as Seen;
    if (round < 0) continue;
    const [first, last] = [typed[0], typed[typed.length - 1]];
    const picture = shown.find(({ at, alt, preview }) => at > last && alt === text && !preview);
    latencies.push((picture?.at ?? Number.NaN) - last);
    rates.push(shown.filter(({ at }) => at <= last).length / ((last - first) / 1000));
  }
} finally {
  await browser.close();
}

const sorted = (list: readonly number[]) => [...list].sort((a, b) => a - b);
const [quick, often] = [sorted(latencies), sorted(rates)];
console.log(machine());
console.log(`${model}, ${STEPS ?? "its own"} steps, ${1000 / BETWEEN} keys/s, ${ROUNDS} texts`);
console.log(
  `last key to picture   ${quick[ROUNDS >> 1].toFixed(0)} ms median, ${quick[ROUNDS - 1].toFixed(0)} ms worst`,
);
console.log(`pictures on the way   ${often[ROUNDS >> 1].toFixed(1)} a second, previews included`);
