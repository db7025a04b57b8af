/** @file `fewstep eval` refuses what it cannot judge before it makes any picture. */

import { cpSync, existsSync, readdirSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { beforeEach, describe, expect, test } from "vitest";
import { loadSafetensors, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { icons, judge } from "./dataset.ts";
import { expectRefusal, fewstep } from "./run.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));
const UNET = "unet/diffusion_pytorch_model.safetensors";

function evaluate(...more: string[]): ReturnType<typeof fewstep> {
  const given = ["--model", TINY, "--judge", at("judge"), "--data", at("icons"), "--count", "2"];
  const env = { FEWSTEP_CACHE: at("weights") };
  return fewstep(["eval", ...given, "--cache", at("cache"), ...more], { env });
}

beforeEach(async () => {
  await icons(64);
  await judge(TINY, 64);
});

describe("refused:", () => {
  test.each<[string, () => unknown, string | RegExp]>([
    [
      "no dataset",
      () => rmSync(at("icons"), { recursive: true }),
      /icons: not an icon dataset: it has no images.saf.*; make one/,
    ],
    [
      "a dataset that is cut off",
      () => truncateSync(at("icons/images.safetensors"), 2000),
      /icons: images.safetensors: truncated: .*; fetch it again$/m,
    ],
    [
      "weights for a dataset",
      () => cpSync(`${TINY}/vae/diffusion_pytorch_model.safetensors`, at("icons/images.safetensors")),
      /icons: not an icon dataset: its images are not uint8 \[N,size,size,3\]; make one/,
    ],
    [
      "no captions",
      () => rmSync(at("icons/metadata.jsonl")),
      /icons\/metadata.jsonl: no such file or folder$/m,
    ],
    [
      "half a line",
      () => put("icons/metadata.jsonl", '{"id":'),
      /icons: .*: line 1 of metadata.jsonl is no picture; make/,
    ],
    [
      "too few lines",
      () => put("icons/metadata.jsonl", readFileSync(at("icons/metadata.jsonl"), "utf8").replace(/.*\n/, "")),
      /icons: not an icon dataset: 4 images, but 3 lines in metadata.jsonl; make one/,
    ],
    [
      "nothing held out",
      () =>
        put(
          "icons/metadata.jsonl",
          readFileSync(at("icons/metadata.jsonl"), "utf8").replaceAll("heldout-pair", "train"),
        ),
      /icons: the split heldout-pair has 0 pictures; 2 are needed$/m,
    ],
    [
      "pictures of another size",
      () => icons(32),
      /looks at 64 pixels, the pictures of .* have 32, those of .* 64; all must be/,
    ],
    [
      "a judge of another size",
      () => judge(TINY, 16),
      /the judge .* looks at 16 pixels, the pictures of .* have 64/,
    ],
    [
      "towers that do not belong together",
      () => judge(TINY, 64, 24),
      /judge: image_encoder projects to 24 features, text_encoder_2 to 12; a judge needs/,
    ],
    [
      "no judge",
      () => rmSync(at("judge"), { recursive: true }),
      /judge\/image_encoder\/config.json: no such file$/m,
    ],
    [
      "a judge that is cut off",
      () => truncateSync(at("judge/image_encoder/model.safetensors"), 3000),
      /judge\/image_encoder: model.safetensors: truncated: /,
    ],
  ])("%s", async (_, spoil, message) => {
    await spoil();
    expectRefusal(await evaluate(), message);
  });

  test("no model", async () =>
    expectRefusal(await evaluate("--model", at("none")), /none: no such folder; name a folder/));

  test.each<[string, string[], string | RegExp]>([
    ["a count of one", ["--count", "1"], "'1' is invalid. Give a whole number from 2 to 1000000."],
    [
      "a split that there is not",
      ["--split", "test"],
      "'test' is invalid. Allowed choices are heldout-pair, train, heldout-style.",
    ],
    [
      "a split without pictures",
      ["--split", "heldout-style"],
      /icons: the split heldout-style has 0 pictures; 2 are needed$/m,
    ],
    [
      "no steps of the teacher",
      ["--reference", "0"],
      /'0' is invalid. Give steps from 1 to 1000, or steps and/,
    ],
    ["guidance that is no number", ["--reference", "32:x"], /'32:x' is invalid. Give steps from 1 to 1000/],
    [
      "an unknown sampler",
      ["--sampler", "eular"],
      /'eular' is invalid. Allowed choices are ddim, dpmpp_2m, /,
    ],
    ["an unknown schedule", ["--schedule", "cosine"], /'cosine' is invalid. Allowed choices are linspace, /],
    ["no such UNet", ["--unet", "none.safetensors"], /none.safetensors: no such file$/m],
    ["no such LoRA", ["--lora", "none.safetensors:0.5"], /none.safetensors: no such file$/m],
    [
      "something else than a LoRA",
      ["--lora", `${TINY}/${UNET}`],
      /is a UNet with diffusers' names, not a LoRA; /,
    ],
  ])("%s", async (_, options, message) => expectRefusal(await evaluate(...options), message));

  test("a place that cannot be written", async () =>
    expectRefusal(
      await evaluate("--sheet", put("file", "")),
      /--sheet .*file: cannot write there: .*; name another folder$/m,
    ));
});

async function judged(...options: string[]) {
  const { code, stdout, stderr } = await evaluate(...options, "--json");
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return JSON.parse(stdout);
}

describe("judged:", () => {
  test("what is not spoilt, against real pictures and the teacher's, which are kept", async () => {
    const result = await judged("--steps", "1", "--reference", "2:3", "--sheet", at("sheets"));
    expect(result).toMatchObject({
      ...{ network: "tiny-sdxl", loras: [], steps: 1, guidance: 5, sampler: "euler", schedule: "leading" },
      evaluations: 2,
      reference: { steps: 2, guidance: 3, evaluations: 4 },
      heldout: { count: 2, teacher: { fd: expect.any(Number) } },
      seen: { count: 2 },
    });
    for (const set of [result.heldout, result.seen]) {
      expect(set.distance_to_teacher).toBeGreaterThan(0);
      expect(set.fd_to_teacher).toBeGreaterThanOrEqual(0);
    }
    expect(result.style).toBeUndefined();
    const sheets = ["heldout-teacher", "heldout", "seen-teacher", "seen"].map((name) => `${name}.png`);
    expect(readdirSync(at("sheets")).sort()).toEqual(sheets);
    // held-out and seen pictures have the same captions here, so one file each for set and diversity
    expect(readdirSync(at("cache"))).toHaveLength(2);
  });

  test("the teacher against itself has no distance", async () => {
    const { heldout, seen } = await judged(
      ...["--steps", "2", "--guidance", "3", "--reference", "2:3", "--split", "heldout-pair"],
    );
    expect(seen).toBeUndefined();
    expect(heldout.distance_to_teacher).toBe(0);
    expect(heldout.fd_to_teacher).toBeCloseTo(0, 6);
    expect(heldout.patch_fd_to_teacher).toBeCloseTo(0, 6);
    expect(heldout.diversity).toBeGreaterThan(0);
    expect(heldout.teacher.diversity).toBe(heldout.diversity);
  });

  test("with other seeds, both draw other pictures", async () => {
    const same = ["--steps", "2", "--guidance", "3", "--reference", "2:3", "--split", "heldout-pair"];
    const [first, other] = [await judged(...same), await judged(...same, "--seed", "7")];
    expect([first.seed, other.seed]).toEqual([0, 7]);
    expect(other.heldout.distance_to_teacher).toBe(0);
    expect(other.heldout.fd).not.toBe(first.heldout.fd);
    expect(readdirSync(at("cache"))).toHaveLength(4);
  });

  test("a held-out style, without a teacher", async () => {
    await icons(64, ["train", "train", "heldout-style", "heldout-style", "heldout-style"]);
    const result = await judged("--steps", "1", "--split", "heldout-style", "--no-reference");
    expect(result.style).toMatchObject({ count: 2 });
    expect([result.heldout, result.reference, result.style.fd_to_teacher]).toEqual(Array(3).fill(undefined));
    expect(existsSync(at("cache"))).toBe(false);
  });

  test("another UNet with the settings that its file carries", async () => {
    const { tensors } = await loadSafetensors(`${TINY}/${UNET}`);
    await saveSafetensors(at("x_2step_unet.safetensors"), tensors, {
      "fewstep.steps": "2",
      "fewstep.guidance": "1",
      "fewstep.timestep_spacing": "trailing",
      "fewstep.sampler": "lcm",
    });
    const options = ["--unet", at("x_2step_unet.safetensors"), "--split", "train", "--no-reference"];
    expect(await judged(...options)).toMatchObject({
      ...{
        network: "x_2step_unet",
        steps: 2,
        guidance: 1,
        evaluations: 2,
        sampler: "lcm",
        schedule: "trailing",
      },
      seen: { count: 2 },
    });
    const asked = await judged(...options, "--sampler", "euler", "--schedule", "linspace", "--steps", "1");
    expect(asked).toMatchObject({ steps: 1, sampler: "euler", schedule: "linspace" });
  });
});

test("in int8, which says what it makes", async () => {
  const options = ["--precision", "int8", "--steps", "1", "--no-reference", "--split", "train"];
  const { code, stderr } = await evaluate(...options);
  expect(code).toBe(0);
  expect(stderr).toMatch(/^fewstep: int8 weights of the UNet are made once/m);
  expect(readdirSync(at("weights/int8"))).toHaveLength(1);
});

test("the table has a row for each number, and warns of steps that the weights are not for", async () => {
  const { tensors } = await loadSafetensors(`${TINY}/${UNET}`);
  await saveSafetensors(at("x.safetensors"), tensors, { "fewstep.steps": "2" });
  const { code, stdout, stderr } = await evaluate(
    "--unet",
    at("x.safetensors"),
    "--steps",
    "1",
    "--reference",
    "1",
  );
  expect({ code, stderr }).toEqual({
    code: 0,
    stderr:
      "fewstep: the model was distilled for 2 steps; 1 will look worse\nfewstep: guidance 5 is much for a " +
      "distilled model; 1 is off, more than 2 distorts\n",
  });
  expect(stdout).toMatch(/^ +held-out +seen$/m);
  expect(stdout).toMatch(/^teacher: its own UNet, 1 step, guidance 5: 2 evaluations$/m);
  for (const row of [
    "FD",
    "patch FD to the teacher",
    "distance to the teacher",
    "diversity",
    "copies of training",
  ])
    expect(stdout).toMatch(new RegExp(`^${row} .*\\d`, "m"));
});
