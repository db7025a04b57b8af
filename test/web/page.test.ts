/** @file The page in a browser, on a server with a tiny model. */

import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import axe from "axe-core";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { buildPage, CHROMIUM, openBrowser, PATIENCE } from "../../scripts/browser.ts";
import type { ServeOptions, Server } from "../../src/serve/index.ts";
import { plain } from "../data/temporary.ts";
import { endless } from "../serve/tiny.ts";
import { fewStepModel, halfway, served } from "./tiny.ts";

describe.skipIf(CHROMIUM === undefined)("the page", { timeout: 4 * PATIENCE }, () => {
  const folder = mkdtempSync(join(tmpdir(), "fewstep-web-"));
  let browser: Browser;
  let built: Awaited<ReturnType<typeof buildPage>>;
  let server: Server;
  let url: string;
  /** What the pages complain about. */
  let complaints: string[] = [];
  /** Servers of single tests. */
  const others = new Set<Server>();

  beforeAll(async () => {
    await fewStepModel(join(folder, "tiny"));
    built = await buildPage();
    ({ server, url } = await served(join(folder, "tiny"), built.folder));
    browser = await openBrowser();
  }, 4 * PATIENCE);
  afterAll(async () => {
    await browser?.close();
    await server?.close(0);
    await built?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true });
  });
  afterEach(async () => {
    for (const context of browser.contexts()) await context.close();
    for (const other of others) await other.close(0);
    others.clear();
    const found = complaints;
    complaints = [];
    expect(found).toEqual([]);
  });

  async function opened(options: BrowserContextOptions & { at?: string } = {}): Promise<Page> {
    const { at = url, ...rest } = options;
    const context = await browser.newContext(rest);
    context.setDefaultTimeout(PATIENCE);
    const page = await context.newPage();
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) complaints.push(message.text());
    });
    page.on("pageerror", (error) => complaints.push(String(error)));
    await page.goto(at);
    return page;
  }

  async function another(options: ServeOptions): Promise<{ server: Server; url: string }> {
    const made = await served(join(folder, "tiny"), built.folder, options);
    others.add(made.server);
    return made;
  }

  /** Complaints that a test brings about. */
  function expectComplaints(expected: RegExp): void {
    expect(complaints).not.toEqual([]);
    complaints = complaints.filter((complaint) => !expected.test(complaint));
  }

  /** Playwright waits for elements, this for anything else. */
  const eventually = <T>(look: () => T) => expect.poll(look, { timeout: PATIENCE });
  const prompt = (page: Page) => page.getByRole("textbox", { name: "Prompt", exact: true });
  const pictureOf = (page: Page, words: string) =>
    page.locator(".pictures img").and(page.getByAltText(words));
  const button = (page: Page, name: string) => page.getByRole("button", { name, exact: true });
  const view = (page: Page, name: string) => page.getByRole("tab", { name });
  const lastRequest = async () => (await server.app.inject("/api/jobs")).json().jobs[0].request;

  test("draws while you type, and what was typed last wins", async () => {
    const page = await opened();
    await prompt(page).pressSequentially("a red apple", { delay: 20 });
    await pictureOf(page, "a red apple").waitFor();
    await page.getByText(/4 steps · 4 evaluations · seed \d+/).waitFor();
    expect(await lastRequest()).toMatchObject({ prompt: "a red apple", steps: 4, n: 1 });
    const [natural, shown] = await pictureOf(page, "a red apple").evaluate((element) => {
      const { naturalWidth, width } = element as HTMLImageElement;
      return [naturalWidth, width];
    });
    expect([natural, shown % 64]).toEqual([64, 0]);
  });

  test("steps are one tap; guidance and negative prompt appear where they have an effect", async () => {
    const page = await opened();
    const guidance = page.getByRole("textbox", { name: "Guidance" });
    const negative = page.getByRole("textbox", { name: "Negative prompt" });
    await prompt(page).fill("a house");
    await page.getByText("1", { exact: true }).first().click();
    await page.getByText(/1 step · 1 evaluation/).waitFor();
    expect(await guidance.count()).toBe(0);
    await page.getByText("Teacher", { exact: true }).click();
    await page.getByText(/30 steps · 60 evaluations/).waitFor();
    await negative.fill("a tree");
    await eventually(lastRequest).toMatchObject({ steps: 30, guidance_scale: 5, negative_prompt: "a tree" });
    await guidance.fill("1");
    await eventually(() => negative.count()).toBe(0);
    await page.getByText(/30 steps · 30 evaluations/).waitFor();
  });

  test("several pictures, another seed, keys alone", async () => {
    const page = await opened();
    await prompt(page).waitFor();
    await page.keyboard.type("two cats"); // the prompt has the focus from the start
    await pictureOf(page, "two cats").waitFor();
    await page.getByRole("slider", { name: "Pictures" }).press("ArrowRight");
    await eventually(() => page.locator(".pictures img").count()).toBe(2);
    const { seed } = await lastRequest();
    await button(page, "Another seed").click();
    await eventually(async () => (await lastRequest()).seed).not.toBe(seed);
    await button(page, "Keep the seed").click();
    await page.keyboard.press("Tab");
    await page.keyboard.press("/");
    expect(await prompt(page).evaluate((element) => element === document.activeElement)).toBe(true);
    const before = (await lastRequest()).seed;
    await page.keyboard.press("Enter");
    await eventually(async () => (await lastRequest()).seed).not.toBe(before);
    expect(await prompt(page).inputValue()).toBe("two cats");
  });

  test("slow pictures tell how far they are, show previews, and can be stopped", async () => {
    const slow = await another({ start: halfway });
    const page = await opened({ at: slow.url });
    await page.getByText("Teacher", { exact: true }).click();
    await page.getByRole("textbox", { name: "Steps of the teacher" }).fill("1000");
    expect(await button(page, "Draw").isDisabled()).toBe(true);
    await prompt(page).fill("a slow picture");
    await page.getByText("Step 7 of 1000").waitFor();
    await page.locator('.pictures img[src^="data:image/webp"]').waitFor();
    await button(page, "Stop").click();
    const job = async () => (await slow.server.app.inject("/api/jobs")).json().jobs[0];
    await eventually(job).toMatchObject({ status: "cancelled", request: { steps: 1000, previews: 5 } });
    expect(await page.getByRole("progressbar").count()).toBe(0);
  });

  test("compares the teacher with fewer and fewer steps", async () => {
    const page = await opened();
    await view(page, "Compare").click();
    await prompt(page).fill("a rocket");
    await button(page, "Compare").click();
    await page.getByText("The comparison is complete").waitFor({ state: "attached" });
    const columns = page.locator(".column");
    const words = await columns.allInnerTexts();
    expect(words.map((text) => text.split("\n")[0])).toEqual(["Teacher, 32 steps", "4 steps", "1 step"]);
    expect(words[0]).toContain("64 evaluations");
    for (const text of words) expect(text).toMatch(/\d (ms|s)\b/);
    expect(words[2]).toMatch(/\d× faster/);
    expect(await columns.locator("img").count()).toBe(3);
  });

  test("the gallery outlives a reload; its pictures are opened, deleted, drawn on from", async () => {
    const page = await opened();
    for (const words of ["a blue heart", "a green tree"]) {
      await prompt(page).fill(words);
      await prompt(page).press("Enter");
      await page.getByRole("button", { name: `Show ${words}` }).waitFor();
    }
    await page.reload();
    expect(await prompt(page).inputValue()).toBe("a green tree");
    await view(page, "Gallery").click();
    await page.getByText("2 pictures, kept in this browser").waitFor();
    await button(page, "a blue heart").click();
    const download = page.waitForEvent("download");
    await page.getByRole("link", { name: "Download" }).click();
    expect((await download).suggestedFilename()).toMatch(/^a-blue-heart-\d+\.png$/);
    await button(page, "Draw on from it").click();
    expect(await prompt(page).inputValue()).toBe("a blue heart");
    await pictureOf(page, "a blue heart").waitFor();
    await view(page, "Gallery").click();
    await button(page, "Delete all").click();
    await page.getByRole("dialog").getByRole("button", { name: "Delete all" }).click();
    await page.getByText("Pictures that you draw are kept here").waitFor();
    await page.reload();
    await page.getByText("Pictures that you draw are kept here").waitFor();
  });

  test("a PNG that is dropped gives its settings back, and hostile ones do nothing", async () => {
    const body = {
      prompt: "a snowman, flat style",
      steps: 1,
      seed: "18446744073709551615",
      width: 96,
      height: 64,
    };
    const headers = { "content-type": "application/json", accept: "text/event-stream" };
    const done = await server.app.inject({ method: "POST", url: "/api/jobs", headers, payload: body });
    const file = (await server.app.inject(`${done.headers.location}/pictures/0.png`)).rawPayload;
    const page = await opened();
    const drop = async (bytes: Uint8Array, name: string): Promise<void> => {
      const dataTransfer = await page.evaluateHandle(
        ([list, name]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(list)], name, { type: "image/png" }));
          return transfer;
        },
        [[...bytes], name] as const,
      );
      await page.dispatchEvent("body", "drop", { dataTransfer });
    };
    await prompt(page).waitFor();
    await drop(file, "snowman.png");
    await pictureOf(page, body.prompt).waitFor();
    expect(await prompt(page).inputValue()).toBe(body.prompt);
    expect(await page.getByRole("textbox", { name: "Seed" }).inputValue()).toBe(body.seed);
    expect(await page.getByLabel("Size").first().inputValue()).toBe("96×64");
    for (const [bytes, says] of [
      [file.subarray(0, 100), /broken\.png: PNG is truncated/],
      [Buffer.from("<script>"), /broken\.png: not a PNG/],
      [await plain("png"), /broken\.png: this picture does not tell its settings/],
    ] as const) {
      await drop(bytes, "broken.png");
      await page.getByText(says).waitFor();
    }
    expect(await prompt(page).inputValue()).toBe(body.prompt);
  });

  test("outlives a restart of the server", async () => {
    const first = await another({});
    const page = await opened({ at: first.url });
    await prompt(page).fill("before");
    await pictureOf(page, "before").waitFor();
    await first.server.close(0);
    await prompt(page).fill("after");
    await page.getByText("The server does not answer").waitFor();
    await another({ port: Number(new URL(first.url).port) });
    await pictureOf(page, "after").waitFor();
    await eventually(() => page.getByText("The server does not answer").count()).toBe(0);
    expectComplaints(/net::ERR_|503/);
  });

  test("a token that the server wants is asked for", async () => {
    const { url: at } = await another({ token: "open-sesame" });
    const page = await opened({ at });
    const dialog = page.getByRole("dialog", { name: "This server wants a token" });
    const token = dialog.locator("input");
    await token.fill("wrong");
    await dialog.getByRole("button", { name: "Enter" }).click();
    await dialog.getByText("The token is wrong.").waitFor();
    await token.fill("open-sesame");
    await dialog.getByRole("button", { name: "Enter" }).click();
    await prompt(page).fill("a door");
    await pictureOf(page, "a door").waitFor();
    expectComplaints(/401/);
  });

  test("what the server refuses is said in its own words", async () => {
    const full = await another({ start: endless, queueLimit: 0 });
    await full.server.app.inject({ method: "POST", url: "/api/jobs", payload: { prompt: "first" } });
    const page = await opened({ at: full.url });
    await prompt(page).fill("second");
    await page.getByRole("alert").getByText("the queue is full").waitFor();
    expectComplaints(/429/);
  });

  test("models that the server does not tell at first are asked for again", async () => {
    const page = await opened();
    const error = { message: "wait a little" };
    await page.route("**/api/models", (route) => route.fulfill({ status: 429, json: { error } }));
    await page.reload();
    await page.getByRole("alert").getByText(error.message).waitFor();
    await page.unroute("**/api/models");
    await prompt(page).waitFor();
    expect(await page.getByRole("alert").count()).toBe(0);
    expectComplaints(/429/);
  });

  test("a training run is followed while it goes on", async () => {
    const run = join(folder, "runs/lightning/8-4/1-conditional");
    mkdirSync(run, { recursive: true });
    const row = (step: number): string => {
      const values = { loss: 1 / (step + 1), discriminator_accuracy_real: 0.5, learning_rate: 1e-4 };
      return `${JSON.stringify({ step, ...values })}\n`;
    };
    writeFileSync(join(run, "log.jsonl"), [0, 1, 2].map(row).join(""));
    writeFileSync(join(run, "samples-2.png"), await plain("png"));
    const { url: at } = await another({ runs: join(folder, "runs"), start: endless });
    const page = await opened({ at: `${at}/#training` });
    await page.getByText("Step 3").waitFor();
    for (const name of [
      /^Loss; last: loss 0\.\d+$/,
      /^Discriminator accuracy; last: discriminator accuracy real 0\.5$/,
      /^Samples of lightning\/8-4/,
    ])
      await page.getByRole("img", { name }).waitFor();
    appendFileSync(join(run, "log.jsonl"), row(3));
    await page.getByText("Step 4").waitFor();
    expect(await page.locator(".chart canvas").count()).toBe(3);
  });

  test("without runs it says how to show them", async () => {
    const page = await opened({ at: `${url}/#training` });
    await page.getByText("fewstep serve --runs runs").waitFor();
  });

  test("light and dark follow the system until one is chosen", async () => {
    const page = await opened({ colorScheme: "dark" });
    const scheme = () => page.locator("html").getAttribute("data-mantine-color-scheme");
    await prompt(page).waitFor();
    expect(await scheme()).toBe("dark");
    await page.emulateMedia({ colorScheme: "light" });
    await eventually(scheme).toBe("light");
    await button(page, "To dark colours").click();
    await eventually(scheme).toBe("dark");
    await page.reload();
    await prompt(page).waitFor();
    expect(await scheme()).toBe("dark");
  });

  test.each<[string, BrowserContextOptions]>([
    ["light", { colorScheme: "light" }],
    ["dark", { colorScheme: "dark" }],
    ["a phone", { viewport: { width: 390, height: 844 }, isMobile: true }],
  ])("accessible: %s", async (_, options) => {
    const page = await opened({ ...options, reducedMotion: "reduce" });
    const problems = async (): Promise<string[]> => {
      const { violations } = (await page.evaluate(`${axe.source}; axe.run()`)) as {
        violations: { id: string; impact: string; nodes: { html: string; failureSummary: string }[] }[];
      };
      return violations
        .filter(({ impact }) => impact === "serious" || impact === "critical")
        .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`));
    };
    await prompt(page).waitFor();
    expect(await problems()).toEqual([]);
    await page.getByText("Teacher", { exact: true }).click();
    await prompt(page).fill("a red apple");
    await prompt(page).press("Enter");
    await button(page, "Show a red apple").waitFor();
    expect(await problems()).toEqual([]);
    await view(page, "Compare").click();
    await button(page, "Compare").click();
    await page.getByText("The comparison is complete").waitFor({ state: "attached" });
    expect(await problems()).toEqual([]);
    await view(page, "Gallery").click();
    expect(await problems()).toEqual([]);
    await button(page, "a red apple").click();
    await button(page, "Draw on from it").waitFor();
    expect(await problems()).toEqual([]);
    await page.keyboard.press("Escape");
    await view(page, "Training").click();
    await page.getByText("fewstep serve --runs runs").waitFor();
    expect(await problems()).toEqual([]);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    expect(overflow).toBeLessThanOrEqual(0);
  });
});
