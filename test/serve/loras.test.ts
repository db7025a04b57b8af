/** @file Adapters of a server: those of a folder by name, in requests and in prompts. */

import { copyFileSync, cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { samplingMetadata } from "../../src/pipelines/index.ts";
import type { Server } from "../../src/serve/index.ts";
import { saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { goldenPath } from "../parity/golden.ts";
import { randomLora, unetTensors } from "../pipelines/tiny.ts";
import { ended, endless, post, TINY, tinyServer } from "./tiny.ts";

const KOHYA = goldenPath("loras/kohya.safetensors");

/** A folder with the adapters kohya and style/ink, a UNet, and a link that leads out. */
async function folder(): Promise<string> {
  const own = await unetTensors();
  mkdirSync(at("loras/style"), { recursive: true });
  copyFileSync(KOHYA, at("loras/kohya.safetensors"));
  await saveLora(at("loras/style/ink.safetensors"), randomLora(own));
  await saveLora(at("secret.safetensors"), randomLora(own));
  await saveSafetensors(at("loras/unet.safetensors"), own);
  symlinkSync(at("secret.safetensors"), at("loras/secret.safetensors"));
  return at("loras");
}

async function picture(server: Server, prompt: string, more: object = {}): Promise<Buffer> {
  const asked = (
    await post(server, "/api/jobs", { prompt, steps: 1, seed: 1, guidance_scale: 1, ...more })
  ).json();
  expect(await ended(server, asked.id)).toMatchObject({ status: "completed", request: { prompt } });
  return (await server.app.inject(`/api/jobs/${asked.id}/pictures/0.webp`)).rawPayload;
}

test("of a folder are listed, and named in requests and prompts", async () => {
  const server = await tinyServer({ loraFolder: await folder(), loras: { other: KOHYA } });
  expect((await server.app.inject("/api/loras")).json()).toEqual({
    loras: [{ name: "other" }, { name: "ink" }, { name: "kohya" }],
  });
  const plain = await picture(server, "a boat");
  const asked = await picture(server, "a boat", {
    loras: [{ name: "kohya", strength: 0.8, text_strength: 0.5 }],
  });
  expect(asked.equals(plain)).toBe(false);
  expect((await picture(server, "a boat <lora:kohya:0.5:0.8>")).equals(asked)).toBe(true);
  expect((await picture(server, "<lora:kohya:0.8>a boat")).equals(asked)).toBe(false);
  const body = { prompt: "a boat <lora:ink>", steps: 1, seed: 1, guidance_scale: 1 };
  const openai = await post(server, "/v1/images/generations", body);
  expect(openai.statusCode).toBe(200);
  expect(Buffer.from(openai.json().data[0].b64_json, "base64").includes("ink: 1")).toBe(true);
});

test.each<[string, object[], string]>([
  ["a <lora:inky>", [], 'there is no LoRA "inky"; there are ink, kohya'],
  ["a <lora:secret>", [], 'there is no LoRA "secret"; there are ink, kohya'],
  ["a <lora:unet>", [], 'there is no LoRA "unet"; there are ink, kohya'],
  ["a <lora:../secret>", [], 'there is no LoRA "../secret"'],
  ["a <lora:style/ink>", [], 'there is no LoRA "style/ink"'],
  ["a <lora:/etc/passwd:1>", [], 'there is no LoRA "/etc/passwd"'],
  ["a <lora:ink:strong>", [], '"<lora:ink:strong>" is no adapter; write <lora:name:0.8>'],
  ["a", [{ name: "inky" }], 'there is no LoRA "inky"'],
  ["a", [{ name: "ink", text_strength: "x" }], 'loras.0.text_strength is "x"'],
  [`a ${"<lora:ink:1>".repeat(5)}`, Array(4).fill({ name: "ink" }), "9 LoRAs are asked for; at most 8"],
])("%s is refused", async (prompt, loras, message) => {
  const server = await tinyServer({ start: endless, loraFolder: await folder() });
  const answer = await post(server, "/api/jobs", { prompt, loras });
  expect(answer.json().error.message).toContain(message);
  expect(answer.statusCode).toBe(400);
});

test("step counts that the sampler does not take are refused: of an adapter, of the model's training", async () => {
  const metadata = samplingMetadata({ steps: 4, sampler: "lcm" });
  await saveLora(at("lcm.safetensors"), randomLora(await unetTensors()), { metadata });
  cpSync(TINY, at("short"), { recursive: true });
  const scheduler = at("short/scheduler/scheduler_config.json");
  const config = { ...JSON.parse(readFileSync(scheduler, "utf8")), num_train_timesteps: 500 };
  writeFileSync(scheduler, JSON.stringify(config));
  const models = { tiny: TINY, short: at("short") };
  const server = await tinyServer({ start: endless, models, loras: { lcm: at("lcm.safetensors") } });
  for (const [body, range] of [
    [{ prompt: "x <lora:lcm>", steps: 60 }, "the LCM and TCD samplers take a whole number from 1 to 50"],
    [{ prompt: "x", steps: 600, model: "short" }, "give a whole number from 1 to 500"],
  ] as const) {
    const answer = await post(server, "/v1/images/generations", body);
    expect(answer.statusCode).toBe(400);
    expect(answer.json().error).toMatchObject({ message: expect.stringContaining(range), param: "steps" });
  }
  for (const body of [{ prompt: "x <lora:lcm>" }, { prompt: "x", steps: 60 }])
    expect((await post(server, "/api/jobs", body)).statusCode).toBe(202);
});

test("without any the tag is refused as well", async () => {
  const answer = await post(await tinyServer({ start: endless }), "/v1/images/generations", {
    prompt: "a <lora:ink>",
  });
  expect(answer.json().error).toMatchObject({
    message: 'there is no LoRA "ink"; there are none',
    code: "invalid_value",
  });
});

test("a folder that is not there, and one that holds what is no weights file, are told", async () => {
  await expect(tinyServer({ loraFolder: at("nowhere") })).rejects.toThrow(/nowhere: no such folder$/);
  put("loras/broken.safetensors", "x");
  await expect(tinyServer({ loraFolder: at("loras") })).rejects.toThrow(
    /broken.safetensors: not a safetensors/,
  );
});
