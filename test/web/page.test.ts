/** @file The page in a browser, on a server with a tiny model. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Server } from "../../src/serve/index.ts";
import { buildPage, CHROMIUM, openBrowser } from "./browser.ts";
import { fewStepModel, served } from "./tiny.ts";

describe.skipIf(CHROMIUM === undefined)("the page", () => {
  const folder = mkdtempSync(join(tmpdir(), "fewstep-web-"));
  let browser: Browser;
  let built: Awaited<ReturnType<typeof buildPage>>;
  let server: Server;
  let url: string;
  /** What the page complains about. */
  let complaints: string[] = [];

  beforeAll(async () => {
    await fewStepModel(join(folder, "tiny"));
    built = await buildPage();
    ({ server, url } = await served(join(folder, "tiny"), built.folder));
    browser = await openBrowser();
  });
  afterAll(async () => {
    await browser?.close();
    await server?.close(0);
    await built?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true });
  });
  afterEach(async () => {
    for (const context of browser.contexts()) await context.close();
    const found = complaints;
    complaints = [];
    expect(found).toEqual([]);
  });

  async function opened(options: BrowserContextOptions = {}, address = url): Promise<Page> {
    const context = await browser.newContext(options);
    context.setDefaultTimeout(60_000);
    const page = await context.newPage();
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) complaints.push(message.text());
    });
    page.on("pageerror", (error) => complaints.push(String(error)));
    await page.goto(address);
    return page;
  }

  const prompt = (page: Page) => page.getByRole("textbox", { name: "Prompt", exact: true });
  const picture = (page: Page) => page.locator(".pictures img").first();

  test("draws while you type, and what was typed last wins", async () => {
    const page = await opened();
    await prompt(page).pressSequentially("a red apple", { delay: 20 });
    await picture(page).and(page.getByAltText("a red apple")).waitFor();
    await page.getByText(/4 steps · 4 evaluations · seed \d+/).waitFor();
    const { jobs } = (await server.app.inject("/api/jobs")).json();
    expect(jobs[0].request).toMatchObject({ prompt: "a red apple", steps: 4, n: 1 });
    const size = await picture(page).evaluate((img: HTMLImageElement) => [img.naturalWidth, img.width]);
    expect(size[0]).toBe(64);
    expect(size[1] % 64).toBe(0);
  });
});
