import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodePng, formatParameters } from "../../src/platform/index.ts";
import { fewstep } from "./run.ts";

const folder = mkdtempSync(join(tmpdir(), "fewstep-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("a picture", () => {
  const file = join(folder, "apple.png");
  const text = formatParameters("a red apple, りんご", "blurry", { Steps: 4, Seed: 7, Size: "2x1" });
  beforeAll(async () => {
    const texts = [
      { keyword: "parameters", text },
      { keyword: "Comment", text: "bell \x07 and \x1b[31mred" },
    ];
    writeFileSync(file, await encodePng({ width: 2, height: 1, data: new Uint8Array(6) }, texts));
  });

  test("as JSON", async () => {
    const { code, stdout } = await fewstep(["info", file, "--json"]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual({
      file,
      kind: "picture",
      width: 2,
      height: 1,
      prompt: "a red apple, りんご",
      negativePrompt: "blurry",
      parameters: { Steps: "4", Seed: "7", Size: "2x1" },
      texts: { Comment: "bell \x07 and \x1b[31mred" },
    });
  });

  test("as text, without the file's control characters", async () => {
    const { stdout } = await fewstep(["info", file]);
    expect(stdout).toContain("prompt: a red apple, りんご\n");
    expect(stdout).toContain("  Steps: 4\n");
    expect(stdout).toContain("  Comment: bell \ufffd and \ufffd[31mred\n");
  });

  test("damaged: says so with exit code 2", async () => {
    const whole = await encodePng({ width: 2, height: 1, data: new Uint8Array(6) });
    const half = join(folder, "half.png");
    writeFileSync(half, whole.subarray(0, 50));
    const { code, stderr } = await fewstep(["info", half]);
    expect(stderr).toMatch(/^fewstep: .*half.png: PNG is truncated/);
    expect(code).toBe(2);
  });
});
