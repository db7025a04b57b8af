/** @file `fewstep generate` refuses what cannot work, and leaves nothing behind when it fails. */

import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  watch,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { saveCheckpoint } from "../../src/pipelines/index.ts";
import { HOST } from "../../src/platform/files.ts";
import { readPng } from "../../src/platform/index.ts";
import { floats } from "../../src/tensor/index.ts";
import { loadSafetensors, saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { expectRefusal, fewstep } from "./run.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));
const WEIGHTS = "diffusion_pytorch_model.safetensors";

/** A picture of the tiny model in one step. */
function generate(...more: string[]): ReturnType<typeof fewstep> {
  return fewstep(["generate", "apple", "--model", TINY, "--steps", "1", "--out", at("a.png"), ...more]);
}

test("a picture of the tiny model", async () => {
  const { code, stdout } = await generate("--out", at("new/folder/"), "--seed", "7", "--quiet");
  expect({ code, stdout }).toEqual({ code: 0, stdout: `${at("new/folder/apple-7.png")}\n` });
  expect(await readPng(readFileSync(stdout.trim()))).toMatchObject({ width: 64, height: 64 });
});

test("step counts that make no picture are refused", async () => {
  const counts = ["0", "-1", "1.5", "abc", "1e3", "99999999999999999999"];
  for (const [i, result] of (await Promise.all(counts.map((n) => generate("--steps", n)))).entries())
    expectRefusal(result, `'${counts[i]}' is invalid. Give a whole number from 1 to 1000.`);
});

test("samplers and schedules, and what the picture says of them", async () => {
  const more = ["--sampler", "dpmpp_2m_sde", "--schedule", "karras", "--guidance-rescale", "0.7", "--json"];
  const { code, stdout } = await generate("--steps", "3", ...more);
  const said = { sampler: "dpmpp_2m_sde", schedule: "karras", guidanceRescale: 0.7, steps: 3 };
  expect({ code, ...JSON.parse(stdout) }).toMatchObject({ code: 0, ...said });
  const info = await fewstep(["info", at("a.png")]);
  expect(info.stdout).toMatch(/DPM\+\+ 2M SDE[\s\S]*Karras/);
});

test("unknown samplers and schedules are refused, with those that there are", async () => {
  const [sampler, schedule, rescale, few] = await Promise.all([
    generate("--sampler", "eular"),
    generate("--schedule", "cosine"),
    generate("--guidance-rescale", "2"),
    generate("--sampler", "lcm", "--steps", "51"),
  ]);
  expectRefusal(sampler, /'eular' is invalid. Allowed choices are ddim, dpmpp_2m, .*euler, .*uni_pc\.$/m);
  expectRefusal(schedule, /'cosine' is invalid. Allowed choices are linspace, .*karras, exponential\.$/m);
  expectRefusal(rescale, "'2' is invalid. Give a number from 0 to 1.");
  expectRefusal(
    few,
    /steps is 51; the LCM and TCD samplers take a whole number from 1 to 50, or another sch/,
  );
});

test("sizes that no network can make are refused", async () => {
  const sizes: [string, RegExp][] = [
    ["0", /'0' is invalid. Give pixels/],
    ["64x", /'64x' is invalid. Give pixels/],
    ["9000", /'9000' is invalid. Give pixels, at most 8192/],
    ["63", /--size 63x63: both sides must be multiples of 4 for this model; try 64x64$/m],
    ["64x1", /--size 64x1: both sides must be multiples of 4 for this model; try 64x4$/m],
  ];
  for (const [i, result] of (await Promise.all(sizes.map(([n]) => generate("--size", n)))).entries())
    expectRefusal(result, sizes[i][1]);
});

test("int8 weights are kept in the cache folder; what memory is for is told when asked", async () => {
  const args = ["generate", "apple", "--model", TINY, "--steps", "1", "--out", at("a.png")];
  const env = { FEWSTEP_CACHE: at("cache") };
  const { code, stderr } = await fewstep([...args, "--precision", "int8", "--verbose"], { env });
  expect(code).toBe(0);
  expect(stderr).toMatch(/int8 weights of the UNet are made once, in .*cache\/int8\/tiny-sdxl-unet-/);
  expect(stderr).toMatch(/^memory: UNet: int8, weights \d+ MB, activations \d+ MB$/m);
  expect(readdirSync(at("cache/int8"))).toHaveLength(1);
});

test("a picture for which there is no memory is refused", async () => {
  const [small, broken] = await Promise.all([
    generate("--memory-limit", "100M"),
    generate("--memory-limit", "much"),
  ]);
  expectRefusal(
    small,
    /loading tiny-sdxl needs \d+ MB of memory for the UNet in fp32 alone, 105 MB are free; use /,
  );
  expectRefusal(broken, /'much' is invalid. Give a size such as/);
  expect(existsSync(at("a.png"))).toBe(false);
});

test("a prediction type that is none is refused; one that the model was not made for changes the picture", async () => {
  const [refused, plain, other] = await Promise.all([
    generate("--prediction-type", "x0"),
    generate("--seed", "1", "--out", at("plain.png"), "--json"),
    generate("--seed", "1", "--out", at("other.png"), "--prediction-type", "v_prediction", "--json"),
  ]);
  expectRefusal(refused, /'x0' is invalid. Allowed choices are epsilon, v_prediction, sample\.$/m);
  expect([plain.code, other.code]).toEqual([0, 0]);
  expect(readFileSync(at("plain.png"))).not.toEqual(readFileSync(at("other.png")));
});

test("more steps than the model has timesteps are refused", async () => {
  cpSync(TINY, at("model"), { recursive: true });
  const file = at("model/scheduler/scheduler_config.json");
  const config = { ...JSON.parse(readFileSync(file, "utf8")), num_train_timesteps: 10 };
  put("model/scheduler/scheduler_config.json", JSON.stringify(config));
  expectRefusal(
    await generate("--model", at("model"), "--steps", "11"),
    "steps is 11; give a whole number from 1 to 10",
  );
});

test("how the prompt is read and what the model is told reach the picture; what is wrong is refused", async () => {
  const told = ["--original-size", "48x32", "--crops-coords-top-left", "1,2", "--vae-tiling", "on"];
  const [made, ...refused] = await Promise.all([
    generate("--prompt-weighting", "a1111", "--clip-skip", "1", ...told, "--json"),
    generate("--clip-skip", "2"),
    generate("--prompt-weighting", "compel"),
    generate("--crops-coords-top-left", "1"),
  ]);
  const settings = { promptWeighting: "a1111", clipSkip: 1, vaeTiling: "on", originalSize: [32, 48] };
  expect(JSON.parse(made.stdout)).toMatchObject({ ...settings, cropsCoordsTopLeft: [1, 2], warnings: [] });
  const reasons = ["clipSkip is 2; with these text encoders", "Allowed choices are none", "from the top and"];
  for (const [i, result] of refused.entries()) expectRefusal(result, reasons[i]);
});

describe("other weights", () => {
  const unet = join(TINY, "unet", WEIGHTS);
  const four = { "fewstep.steps": "4", "fewstep.guidance": "1", "fewstep.timestep_spacing": "trailing" };
  const module = { down: floats([2, 8]), up: floats([8, 2]), alpha: 2 };
  const lora = new Map([["mid_block.attentions.0.proj_in", module]]);

  test("bring their settings; what does not go with them is said on stderr, or in the JSON", async () => {
    await saveSafetensors(at("u.safetensors"), (await loadSafetensors(unet)).tensors, four);
    await saveLora(at("l.safetensors"), lora);
    const args = ["generate", "x", "--model", TINY, "--unet", at("u.safetensors"), "--out", at("a.png")];
    const wrong = ["--steps", "1", "--guidance", "3"];
    const [usual, said, quiet] = await Promise.all([
      fewstep([...args, "--lora", `${at("l.safetensors")}:0.5`, "--json"]),
      fewstep([...args, ...wrong]),
      fewstep([...args, ...wrong, "--quiet"]),
    ]);
    expect(JSON.parse(usual.stdout)).toMatchObject({
      ...{ model: "u", loras: [{ name: "l", strength: 0.5 }], steps: 4, guidance: 1, sampler: "euler" },
      warnings: [],
    });
    expect(said.stderr).toMatch(
      /^fewstep: the model was distilled for 4 steps; 1 .*\nfewstep: guidance 3 is /m,
    );
    expect(quiet).toEqual({ code: 0, stdout: `${at("a.png")}\n`, stderr: "" });
    const { stdout } = await fewstep([...args, ...wrong, "--json"]);
    expect(JSON.parse(stdout)).toMatchObject({
      steps: 1,
      warnings: [/distilled/, /guidance/].map((w) => expect.stringMatching(w)),
    });
  });

  test("of adapters in a folder, named in the prompt", async () => {
    mkdirSync(at("loras"));
    await saveLora(at("loras/l.safetensors"), lora);
    const args = [
      "generate",
      "apple <lora:l:0.5>",
      "--model",
      TINY,
      "--steps",
      "1",
      "--out",
      at("a.png"),
      "--json",
    ];
    const [named, unknown, nowhere] = await Promise.all([
      fewstep([...args, "--lora-dir", at("loras"), "--lora", `${at("loras/l.safetensors")}:0.25`]),
      fewstep([...args, "and <lora:m>", "--lora-dir", at("loras")]),
      fewstep(args),
    ]);
    expect(JSON.parse(named.stdout)).toMatchObject({
      prompt: "apple",
      loras: [{ name: "l", strength: 0.75 }],
    });
    expectRefusal(unknown, /there is no LoRA "m"; there are l$/m);
    expectRefusal(nowhere, /the prompt names the LoRA "l", but no folder of LoRAs is given \(--lora-dir/);
  });

  test("that the model folder brings along are chosen by --steps", async () => {
    cpSync(TINY, at("model"), { recursive: true });
    await saveSafetensors(at("model/four.safetensors"), (await loadSafetensors(unet)).tensors, four);
    const lightning = { default: 4, files: { 4: "four.safetensors" } };
    put("model/model_index.json", JSON.stringify({ fewstep: { steps: 3, guidance: 4, lightning } }));
    const args = ["generate", "x", "--model", at("model"), "--json"];
    const [usual, own, strong] = await Promise.all([
      fewstep([...args, "--out", at("a.png")]),
      fewstep([...args, "--out", at("b.png"), "--steps", "2"]),
      fewstep([...args, "--out", at("c.png"), "--steps", "4", "--guidance", "4"]),
    ]);
    expect(JSON.parse(usual.stdout)).toMatchObject({ model: "four", steps: 4, guidance: 1, warnings: [] });
    expect(JSON.parse(own.stdout)).toMatchObject({ model: "model", steps: 2, guidance: 4, warnings: [] });
    const warnings = [expect.stringMatching(/^guidance 4 is much for a distilled model/)];
    expect(JSON.parse(strong.stdout)).toMatchObject({ model: "four", guidance: 4, warnings });
  });

  test("of a whole model in one file", async () => {
    await saveCheckpoint(at("all.safetensors"), TINY);
    const { code, stdout } = await generate("--model", at("all.safetensors"), "--json");
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ model: "all", steps: 1, guidance: 5 });
    expectRefusal(
      await generate("--model", unet),
      /is a UNet with diffusers' names, not a single-file checkpoint; give it as the UNet$/m,
    );
  });

  test("that cannot be used are refused", async () => {
    await saveLora(at("l.safetensors"), new Map([["mid_block.attentions.7.proj_in", module]]));
    truncateSync(put("u.safetensors", readFileSync(unet)), 3000);
    const cases: [string[], RegExp][] = [
      [["--unet", at("no.safetensors")], /no.safetensors: no such file$/m],
      [["--unet", TINY], /tiny-sdxl: not a file$/m],
      [["--unet", at("u.safetensors")], /u.safetensors: truncated: .*; fetch it again$/m],
      [["--unet", at("l.safetensors")], /l.safetensors is a LoRA, not a UNet .*; give it as a LoRA$/m],
      [
        ["--lora", at("l.safetensors")],
        /l.safetensors is a LoRA of another network: 3 left over: lora_unet_mid/,
      ],
      [
        ["--lora", unet],
        /diffusion_pytorch_model.safetensors is a UNet .*, not a LoRA; give it as the UNet$/m,
      ],
      [["--lora", `${at("l.safetensors")}:strong`], /is invalid. The strength is not a number; give "file/],
      [
        ["--lora", at("l.safetensors"), "--lora", `${at("l.safetensors")}:0.5`],
        /This file is given twice.$/m,
      ],
    ];
    const results = await Promise.all(cases.map(([args]) => generate(...args)));
    for (const [i, result] of results.entries()) expectRefusal(result, cases[i][1]);
  });
});

describe("a model folder", () => {
  /** Rewrites the tensors of a component. */
  async function rewrite(part: string, change: (tensors: Record<string, unknown>) => void): Promise<void> {
    const file = at("model", part, WEIGHTS);
    const { tensors } = await loadSafetensors(file);
    change(tensors);
    await saveSafetensors(file, tensors);
  }

  test.each<[string, () => unknown, string | RegExp]>([
    [
      "that does not exist",
      () => rmSync(at("model"), { recursive: true }),
      /model: no such folder; name a folder in/,
    ],
    [
      "without model_index.json",
      () => rmSync(at("model/model_index.json")),
      /model: no model_index.json there; name/,
    ],
    [
      "with a list for an index",
      () => put("model/model_index.json", "[]"),
      /model_index.json: not a JSON object$/m,
    ],
    ["with half an index", () => put("model/model_index.json", "{"), /model_index.json is not valid JSON$/m],
    [
      "without a component",
      () => rmSync(at("model/vae"), { recursive: true }),
      /vae\/config.json: no such file$/m,
    ],
    [
      "without weights",
      () => rmSync(at("model/unet", WEIGHTS)),
      /model\/unet has no weights: expected one of diff/,
    ],
    [
      "with a truncated header",
      () => truncateSync(at("model/vae", WEIGHTS), 1000),
      /model\/vae: diffusion_pytorch_model.safetensors: truncated: the header needs .*; fetch it again$/m,
    ],
    [
      "with truncated data",
      () => truncateSync(at("model/unet", WEIGHTS), 100_000),
      /model\/unet: diffusion_pytorch_model.safetensors: truncated: tensor .*; fetch it again$/m,
    ],
    [
      "with other names",
      () =>
        rewrite("unet", (tensors) => {
          tensors.conv_inn = tensors["conv_in.bias"];
          delete tensors["conv_in.bias"];
        }),
      /model\/unet\/diff.* does not fit: 1 missing: conv_in.bias; 1 left over: conv_inn$/m,
    ],
    [
      "with other shapes",
      () => rewrite("unet", (tensors) => Object.assign(tensors, { "conv_in.bias": floats([5]) })),
      /does not fit: 1 of another shape: conv_in.bias \(needs \[4\], has \[5\]\)$/m,
    ],
    [
      "with tensors that the decoder does not have",
      () => rewrite("vae", (tensors) => Object.assign(tensors, { "decoder.extra": floats([1]) })),
      /model\/vae\/diff.* does not fit: 1 left over: decoder.extra$/m,
    ],
    [
      "with an unknown setting",
      () => put("model/vae/config.json", '{"act_fn": "tanh"}'),
      /vae\/config.json: AutoencoderKL config: act_fn is "tanh"/,
    ],
    [
      "with the vocabulary of nothing",
      () => put("model/tokenizer/vocab.json", "{}"),
      /model\/tokenizer: the tokenizer's vocabulary has no <\|startoftext\|>/,
    ],
  ])("%s is refused", async (_, spoil, message) => {
    cpSync(TINY, at("model"), { recursive: true });
    await spoil();
    expectRefusal(await generate("--model", at("model")), message);
    expect(existsSync(at("a.png"))).toBe(false);
  });
});

describe("a place that cannot be written", () => {
  test("below a file", async () => {
    const out = join(put("file", ""), "a.png");
    expectRefusal(await generate("--out", out), `${out}: part of the path is a file, not a folder`);
  });

  // Node's own mkdir never returns there, and fills the memory.
  test.skipIf(!existsSync("/proc/self"))("where the system has no folders to give", async () => {
    const result = await fewstep(["generate", "apple", "--out", "/proc/nowhere/a.png"], {
      started: (child) => setTimeout(() => child.kill("SIGKILL"), 20_000).unref(),
    });
    expectRefusal(result, "--out /proc/nowhere/a.png: cannot write there");
  });

  // The temporary file is named after the process: one that is there already, and leads to the device that is
  // always full, takes its place.
  test.skipIf(!existsSync("/dev/full"))("on a full disk, with nothing left", async () => {
    put("out/other.png", "stays");
    const args = ["generate", "apple", "--model", TINY, "--steps", "1", "--out", at("out/a.png")];
    const result = await fewstep(args, {
      started: ({ pid }) => symlinkSync("/dev/full", at(`out/a.png.${HOST}-${pid}-0-0.tmp`)),
    });
    expectRefusal(result, `${at("out/a.png")}: the disk is full; nothing was written`);
    expect(readdirSync(at("out"))).toEqual(["other.png"]);
  });
});

describe("Ctrl-C", () => {
  const interrupted = { code: 130, stdout: "" };

  test("between steps: nothing is left", async () => {
    const args = ["--negative", "x", "--guidance", "1", "--steps", "1000", "--batch", "32", "--model", TINY];
    const { stderr, ...rest } = await fewstep(["generate", "apple", ...args, "--out", at("out/")], {
      // The remark on the negative prompt comes when the model is loaded.
      started: (child) => child.stderr!.once("data", () => setTimeout(() => child.kill("SIGINT"), 200)),
    });
    expect(stderr).toMatch(/a negative prompt has no effect.*\nfewstep: interrupted\n$/);
    expect(rest).toEqual(interrupted);
    expect(readdirSync(at("out"))).toEqual([]);
  });

  test("between pictures: those that are there are whole", async () => {
    put("out/first.txt", "");
    const args = [
      "generate",
      "apple",
      "--steps",
      "1",
      "--batch",
      "256",
      "--model",
      TINY,
      "--out",
      at("out/"),
    ];
    const result = await fewstep(args, {
      started: (child) => {
        const watcher = watch(at("out"), (_, name) => {
          if (!name?.endsWith(".tmp")) return;
          watcher.close();
          child.kill("SIGINT");
        });
      },
    });
    expect(result).toEqual({ ...interrupted, stderr: "fewstep: interrupted\n" });
    const names = readdirSync(at("out")).filter((name) => name !== "first.txt");
    expect(names.length).toBeLessThan(256);
    for (const name of names) {
      expect(name).toMatch(/\.png$/);
      await readPng(readFileSync(at("out", name)));
    }
  });
});
