/**
 * @file The pictures of the page in docs/images: `npx tsx scripts/screenshots.ts [folder with runs]`, with chromium and a
 * built page (`npm run build`). The model is the bundled one, or MODEL. Without runs the training view is left as it is.
 */

import process from "node:process";
import type { BrowserContextOptions, Page } from "playwright-core";
import sharp from "sharp";
import { atomicWrite } from "../src/platform/index.ts";
import { openBrowser } from "./browser.ts";
import { serve } from "./served.ts";

const PROMPTS = ["a yellow star", "a blue heart", "a clock", "a smiling face", "pizza", "a red apple"];
/** Bytes of a file. */
const MOST = 150_000;

const [runs] = process.argv.slice(2);
const model = process.env.MODEL;
await using server = await serve(...(model ? ["--model", model] : []), ...(runs ? ["--runs", runs] : []));
const browser = await openBrowser();

/** Draws some pictures, one after the other, so that the gallery has something to show. */
async function drawn(options: BrowserContextOptions): Promise<Page> {
  const page = await (await browser.newContext(options)).newPage();
  const settings = JSON.stringify(JSON.stringify({ seed: "1" }));
  const script = `localStorage.getItem("fewstep.settings") ?? localStorage.setItem("fewstep.settings", ${settings})`;
  await page.addInitScript({ content: script });
  await page.goto(server.url);
  const prompt = page.getByRole("textbox", { name: "Prompt", exact: true });
  for (const words of PROMPTS) {
    await prompt.fill(words);
    await prompt.press("Enter");
    await page.getByRole("button", { name: `Show ${words}` }).waitFor();
  }
  return page;
}

async function save(page: Page, name: string): Promise<void> {
  await page.waitForTimeout(500); // until nothing moves
  const shot = await page.screenshot({ animations: "disabled", caret: "hide" });
  const file = await sharp(shot).png({ palette: true, effort: 10 }).toBuffer();
  if (file.length > MOST) throw new Error(`${name} has ${file.length} bytes, more than ${MOST}`);
  await atomicWrite(`docs/images/${name}.png`, file);
  console.log(`docs/images/${name}.png, ${Math.round(file.length / 1024)} KiB`);
}

async function takeAll(): Promise<void> {
  const desktop = await drawn({ viewport: { width: 1200, height: 800 }, colorScheme: "light" });
  await save(desktop, "page-draw");
  await desktop.getByRole("tab", { name: "Compare" }).click();
  await desktop.getByRole("button", { name: "Compare" }).click();
  await desktop.getByText("The comparison is complete").waitFor({ state: "attached" });
  await desktop.setViewportSize({ width: 1200, height: 520 });
  await save(desktop, "page-compare");
  await save(await drawn({ viewport: { width: 390, height: 800 }, isMobile: true }), "page-phone");
  const dark = await drawn({ viewport: { width: 1200, height: 800 }, colorScheme: "dark" });
  await save(dark, "page-dark");
  if (runs) {
    await dark.getByRole("tab", { name: "Training" }).click();
    await dark.locator(".chart canvas").first().waitFor();
    await save(dark, "page-training");
  }
}

try {
  await takeAll();
} finally {
  await browser.close();
}
