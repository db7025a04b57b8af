/** @file Other UNets and adapters on a base model: the pictures they make, and the settings they bring. */

import { cpSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { readComponents } from "../../src/pipelines/components.ts";
import {
  type GenerateOptions,
  type SamplingSettings,
  SDXL,
  samplingMetadata,
} from "../../src/pipelines/index.ts";
import { lcm } from "../../src/samplers/index.ts";
import { castTensor, floats, toFloat32 } from "../../src/tensor/index.ts";
import {
  loadSafetensors,
  saveLora,
  saveSafetensors,
  tensorSource,
  unetTable,
  writeSafetensors,
} from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import {
  apart,
  changed,
  merged,
  picture,
  randomLora,
  type Tensors,
  TINY,
  UNET,
  unetTensors,
} from "./tiny.ts";

const LIGHTNING = samplingMetadata({ steps: 4, predictionType: "epsilon", spacing: "trailing", guidance: 1 });
let own: Tensors;
let plain: Uint8Array;
beforeAll(async () => {
  own = await unetTensors();
  plain = await picture();
});

describe("a UNet file", () => {
  test("of the base's own weights makes the same picture", async () => {
    await saveSafetensors(at("u.safetensors"), own);
    expect(await picture({ unet: at("u.safetensors") })).toEqual(plain);
  });

  test("replaces the base's weights, and the base needs none", async () => {
    const tensors = changed(own, 3);
    cpSync(TINY, at("base"), { recursive: true });
    await saveSafetensors(at("base/unet/diffusion_pytorch_model.safetensors"), tensors);
    const expected = await picture({}, undefined, at("base"));
    expect(apart(expected, plain)).toBeGreaterThan(5);
    await saveSafetensors(at("u.safetensors"), tensors);
    rmSync(at("base/unet/diffusion_pytorch_model.safetensors"));
    expect(await picture({ unet: at("u.safetensors") }, undefined, at("base"))).toEqual(expected);
  });

  test("brings its sampling settings", async () => {
    await saveSafetensors(at("four.safetensors"), own, LIGHTNING);
    await using sdxl = await SDXL.load(TINY, { unet: at("four.safetensors"), threads: 1 });
    expect(sdxl.info).toMatchObject({
      distilled: 4,
      defaults: { steps: 4, guidance: 1, schedule: "trailing", sampler: { name: "euler" } },
    });
    const [made] = await sdxl.textToImage("apple");
    expect(made.settings).toMatchObject({ steps: 4, guidance: 1, model: "four" });
    const asked = await picture({}, { steps: 4, guidance: 1, schedule: "trailing" });
    await expect(picture({ unet: at("four.safetensors") }, {})).resolves.toEqual(asked);
  });

  test("that predicts pictures is sampled so, whatever the base's scheduler says", async () => {
    const metadata = samplingMetadata({
      steps: 1,
      predictionType: "sample",
      spacing: "trailing",
      guidance: 1,
    });
    await saveSafetensors(at("x0.safetensors"), own, metadata);
    cpSync(TINY, at("base"), { recursive: true });
    const scheduler = { beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear" };
    const config = { ...scheduler, prediction_type: "sample", timestep_spacing: "trailing" };
    put("base/scheduler/scheduler_config.json", JSON.stringify(config));
    const expected = await picture({}, { steps: 1, guidance: 1 }, at("base"));
    expect(await picture({ unet: at("x0.safetensors") }, {})).toEqual(expected);
    put(
      "base/scheduler/scheduler_config.json",
      JSON.stringify({ ...config, prediction_type: "v_prediction" }),
    );
    expect(await picture({ unet: at("x0.safetensors") }, {}, at("base"))).toEqual(expected);
  });

  test("without settings leaves those of the base, whatever its name", async () => {
    await saveSafetensors(at("sdxl_lightning_4step_unet.safetensors"), own);
    await using sdxl = await SDXL.load(TINY, { unet: at("sdxl_lightning_4step_unet.safetensors") });
    expect(sdxl.info.distilled).toBeUndefined();
    expect(sdxl.info.defaults).toMatchObject({ steps: 30, guidance: 5, schedule: "leading" });
  });
});

describe("a folder's scheduler", () => {
  /** The tiny model with another scheduler. */
  function scheduled(config: Record<string, unknown>): string {
    cpSync(TINY, at("base"), { recursive: true });
    const own = JSON.parse(readFileSync(at("base/scheduler/scheduler_config.json"), "utf8"));
    put("base/scheduler/scheduler_config.json", JSON.stringify({ ...own, ...config }));
    return at("base");
  }

  test.each<[Record<string, unknown>, string, string]>([
    [{}, "euler", "leading"],
    [{ _class_name: "PNDMScheduler" }, "euler", "leading"],
    [{ _class_name: "DDIMScheduler", timestep_spacing: "trailing" }, "ddim", "trailing"],
    [{ _class_name: "EulerAncestralDiscreteScheduler" }, "euler_ancestral", "leading"],
    [{ _class_name: "DPMSolverMultistepScheduler", use_karras_sigmas: true }, "dpmpp_2m", "karras"],
    [
      { _class_name: "DPMSolverMultistepScheduler", algorithm_type: "sde-dpmsolver++" },
      "dpmpp_2m_sde",
      "leading",
    ],
    [{ _class_name: "LCMScheduler" }, "lcm", "leading"],
  ])("%o", async (config, sampler, schedule) => {
    const { usual } = await readComponents(scheduled(config), {});
    expect([usual.sampler.name, usual.schedule]).toEqual([sampler, schedule]);
    const told = { steps: 2, spacing: "trailing" } as const;
    await saveSafetensors(at("few.safetensors"), own, samplingMetadata(told));
    const few = await readComponents(at("base"), { unet: at("few.safetensors") });
    expect([few.usual.sampler.name, few.usual.schedule]).toEqual(["euler", "trailing"]);
  });

  test.each<[Record<string, unknown>, RegExp]>([
    [{ _class_name: "EDMDPMSolverMultistepScheduler" }, /the class is EDMDPMSolver.*not those of EDM/],
    [{ _class_name: "FlowMatchEulerDiscreteScheduler" }, /the class is FlowMatchEuler.*of flow matching$/],
    [{ trained_betas: [0.1, 0.2] }, /trained_betas are given; fewstep takes beta_start and beta_end$/],
  ])("%o is refused", async (config, message) => {
    await expect(readComponents(scheduled(config), {})).rejects.toThrow(message);
  });
});

describe("a prediction type that is asked for", () => {
  const once: GenerateOptions = { steps: 1, guidance: 1, schedule: "trailing" };

  test("stands in for what the files of others do not say", async () => {
    const x0: SamplingSettings = { steps: 1, predictionType: "sample", spacing: "trailing", guidance: 1 };
    await saveSafetensors(at("marked.safetensors"), own, samplingMetadata(x0));
    await saveSafetensors(at("sdxl_lightning_1step_x0.safetensors"), own);
    const unet = at("sdxl_lightning_1step_x0.safetensors");
    const expected = await picture({ unet: at("marked.safetensors") }, {});
    expect(await picture({ unet, predictionType: "sample" }, once)).toEqual(expected);
    expect(apart(await picture({ unet }, once), expected)).toBeGreaterThan(5);
    await using sdxl = await SDXL.load(TINY, { unet, predictionType: "sample" });
    expect(sdxl.warnings(once)).toEqual([]);
  });

  test("goes before what a file says, with a warning; an adapter for another is refused", async () => {
    const metadata = samplingMetadata({ predictionType: "v_prediction" });
    await saveSafetensors(at("v.safetensors"), own, metadata);
    const options = { unet: at("v.safetensors"), predictionType: "epsilon" } as const;
    expect(await picture(options, once)).toEqual(await picture({}, once));
    await using sdxl = await SDXL.load(TINY, options);
    expect(sdxl.warnings(once)).toEqual([
      `${at("v.safetensors")} says that its UNet predicts v_prediction; it is sampled as one that predicts epsilon, as asked`,
    ]);
    await saveLora(at("l.safetensors"), randomLora(own), { metadata });
    await expect(
      SDXL.load(TINY, { loras: { [at("l.safetensors")]: 1 }, predictionType: "sample" }),
    ).rejects.toThrow(/l.safetensors is for a UNet that predicts v_prediction; this one predicts sample$/);
  });

  test("is one of three", async () => {
    const predictionType = "x0" as "sample";
    await expect(SDXL.load(TINY, { predictionType })).rejects.toThrow(
      /^the prediction type is "x0"; accepted are epsilon, v_prediction, sample$/,
    );
  });
});

test.each(["diffusers", "checkpoint"] as const)(
  "marks of ComfyUI in a UNet file with the names of %s: it predicts v, to zero SNR",
  async (naming) => {
    const marks = { v_pred: floats([0]), ztsnr: floats([0]) };
    const { unet: config, scheduler: base } = await readComponents(TINY, {});
    if (naming === "diffusers") await saveSafetensors(at("v.safetensors"), { ...own, ...marks });
    else {
      const sources = (tensors: Tensors) =>
        new Map(Object.entries(tensors).map(([name, t]) => [name, tensorSource(t)] as const));
      const named = unetTable(config).write(sources(own));
      await writeSafetensors(at("v.safetensors"), new Map([...named, ...sources(marks)]));
    }
    const { scheduler } = await readComponents(TINY, { unet: at("v.safetensors") });
    expect(scheduler).toEqual({ ...base, prediction_type: "v_prediction", rescale_betas_zero_snr: true });
    cpSync(TINY, at("base"), { recursive: true });
    put("base/scheduler/scheduler_config.json", JSON.stringify(scheduler));
    const once = { steps: 1, guidance: 1 };
    expect(await picture({ unet: at("v.safetensors") }, once)).toEqual(await picture({}, once, at("base")));
  },
);

test("weights in floats of 8 bits are what they were rounded to", async () => {
  const rounded = Object.entries(own).map(([name, t]) => [name, castTensor(t, "float8_e4m3fn")] as const);
  await saveSafetensors(at("8.safetensors"), Object.fromEntries(rounded));
  const exact = rounded.map(([name, t]) => [name, toFloat32(t)]);
  await saveSafetensors(at("32.safetensors"), Object.fromEntries(exact));
  const made = await picture({ unet: at("8.safetensors") });
  expect(apart(made, await picture({ unet: at("32.safetensors") }))).toBeLessThanOrEqual(1);
  expect(apart(made, plain)).toBeGreaterThan(4);
});

test("CosXL, whose noise is of another kind, is refused", async () => {
  await saveSafetensors(at("c.safetensors"), { ...own, "edm_vpred.sigma_max": floats([], [120]) });
  await expect(SDXL.load(TINY, { unet: at("c.safetensors") })).rejects.toThrow(
    /c.safetensors is a UNet with diffusers' names of CosXL; fewstep runs models of the SDXL family$/,
  );
});

describe("LoRA files", () => {
  test("make the pictures of merged weights, at their strengths", async () => {
    const lora = randomLora(own);
    await saveLora(at("a.safetensors"), lora);
    await saveSafetensors(at("m.safetensors"), merged(own, lora, 0.7));
    const expected = await picture({ unet: at("m.safetensors") });
    expect(apart(expected, plain)).toBeGreaterThan(5);
    expect(apart(await picture({ loras: { [at("a.safetensors")]: 0.7 } }), expected)).toBeLessThanOrEqual(1);
    expect(await picture({ loras: { [at("a.safetensors")]: 0 } })).toEqual(plain);
  });

  test("stack, on another UNet as well", async () => {
    const base = changed(own, 4);
    const [a, b] = [randomLora(own), randomLora(own, { seed: 2, rank: 2, alpha: 1 })];
    await saveSafetensors(at("u.safetensors"), base);
    await saveLora(at("a.safetensors"), a);
    await saveLora(at("b.safetensors"), b);
    await saveSafetensors(at("m.safetensors"), merged(merged(base, a), b, -0.5));
    const loras = { [at("a.safetensors")]: 1, [at("b.safetensors")]: -0.5 };
    const got = await picture({ unet: at("u.safetensors"), loras });
    expect(apart(got, await picture({ unet: at("m.safetensors") }))).toBeLessThanOrEqual(1);
  });

  test("in half precision make almost the same picture", async () => {
    const lora = randomLora(own);
    await saveLora(at("a.safetensors"), lora);
    await saveLora(at("h.safetensors"), lora, { dtype: "float16" });
    const [full, half] = [
      await picture({ loras: { [at("a.safetensors")]: 1 } }),
      await picture({ loras: { [at("h.safetensors")]: 1 } }),
    ];
    expect(apart(full, half)).toBeLessThanOrEqual(2);
  });

  test("in bfloat16, and with the names of single-file checkpoints", async () => {
    const lora = randomLora(own);
    await saveLora(at("a.safetensors"), lora);
    const { tensors } = await loadSafetensors(at("a.safetensors"));
    const renamed = Object.entries(tensors).map(([key, t]) => {
      const name = key.replace("down_blocks_1_attentions_0_", "input_blocks_3_1_");
      return [
        name.replace("mid_block_resnets_1_conv1", "middle_block_2_in_layers_2"),
        castTensor(t, "bfloat16"),
      ];
    });
    await saveSafetensors(at("b.safetensors"), Object.fromEntries(renamed));
    expect(renamed.map(([name]) => name)).toContain("lora_unet_input_blocks_3_1_proj_in.alpha");
    const full = await picture({ loras: { [at("a.safetensors")]: 1 } });
    expect(apart(await picture({ loras: { [at("b.safetensors")]: 1 } }), full)).toBeLessThanOrEqual(4);
  });

  test("bring settings, and are named in the picture", async () => {
    await saveLora(at("four.safetensors"), randomLora(own), { metadata: LIGHTNING });
    await saveLora(at("style.safetensors"), randomLora(own, { seed: 2 }));
    const loras = { [at("four.safetensors")]: 1, [at("style.safetensors")]: 0.5 };
    await using sdxl = await SDXL.load(TINY, { loras, threads: 1 });
    expect(sdxl.info.distilled).toBe(4);
    const [made] = await sdxl.textToImage("apple", { steps: 1 });
    expect(made.parameters).toMatch(/Model: tiny-sdxl, Loras: "four: 1, style: 0.5", RNG/);
  });

  test("of LCM bring its sampler", async () => {
    const metadata = samplingMetadata({ steps: 4, guidance: 1, sampler: "lcm" });
    await saveLora(at("lcm.safetensors"), randomLora(own), { metadata });
    await using sdxl = await SDXL.load(TINY, { loras: { [at("lcm.safetensors")]: 1 }, threads: 1 });
    expect(sdxl.info.defaults.sampler).toBe(lcm);
    const [made] = await sdxl.textToImage("apple");
    expect(made.settings).toMatchObject({ sampler: "LCM", steps: 4 });
  });
});

test("warnings say what does not go with the weights", async () => {
  await saveSafetensors(at("four.safetensors"), own, LIGHTNING);
  await using few = await SDXL.load(TINY, { unet: at("four.safetensors") });
  expect(few.warnings()).toEqual([]);
  expect(few.warnings({ steps: 4, guidance: 2 })).toEqual([]);
  expect(few.warnings({ steps: 8, guidance: 5, negativePrompt: "x" })).toEqual([
    "the model was distilled for 4 steps; 8 will look worse",
    "guidance 5 is much for a distilled model; 1 is off, more than 2 distorts",
  ]);
  expect(few.warnings({ negativePrompt: "x" })).toEqual([
    "a negative prompt has no effect at guidance 1; it needs more than 1",
  ]);
  await using teacher = await SDXL.load(TINY);
  expect(teacher.warnings({ steps: 4, guidance: 9, negativePrompt: "x" })).toEqual([]);
});

test("a LoRA for another prediction than the UNet's own is refused", async () => {
  await saveSafetensors(at("x0.safetensors"), own, samplingMetadata({ steps: 1, predictionType: "sample" }));
  await saveLora(at("l.safetensors"), randomLora(own), { metadata: LIGHTNING });
  const loaded = SDXL.load(TINY, { unet: at("x0.safetensors"), loras: { [at("l.safetensors")]: 1 } });
  await expect(loaded).rejects.toThrow(
    /l.safetensors is for a UNet that predicts epsilon; this one predicts sample$/,
  );
});

describe("refused in one sentence", () => {
  test.each<[string, () => Promise<unknown>, object, RegExp]>([
    ["a missing file", async () => {}, { unet: "x.safetensors" }, /x.safetensors: no such file$/],
    ["a missing LoRA", async () => {}, { loras: { "x.safetensors": 1 } }, /x.safetensors: no such file$/],
    [
      "a LoRA as UNet",
      () => saveLora(at("x.safetensors"), randomLora(own)),
      { unet: "x.safetensors" },
      /x.safetensors is a LoRA, not a UNet with diffusers' names; give it as a LoRA$/,
    ],
    [
      "a UNet as LoRA",
      () => saveSafetensors(at("x.safetensors"), own),
      { loras: { "x.safetensors": 1 } },
      /x.safetensors is a UNet with diffusers' names, not a LoRA; give it as the UNet$/,
    ],
    [
      "wrong keys",
      () => saveSafetensors(at("x.safetensors"), { conv: own["conv_in.weight"] }),
      { unet: "x.safetensors" },
      /x.safetensors does not fit: \d+ missing: conv_in.weight, .*, …; 1 left over: conv$/,
    ],
    [
      "a LoRA of another network",
      () =>
        saveLora(
          at("x.safetensors"),
          new Map([["mid_block.resnets.7.conv1", { down: floats([1, 2]), up: floats([2, 1]), alpha: 1 }]]),
        ),
      { loras: { "x.safetensors": 1 } },
      /x.safetensors is a LoRA of another network: 3 left over: lora_unet_mid_block_resnets_7_conv1/,
    ],
    [
      "bad metadata",
      () => saveSafetensors(at("x.safetensors"), own, { "fewstep.steps": "many" }),
      { unet: "x.safetensors" },
      /x.safetensors: fewstep.steps is "many"; accepted are whole numbers from 1 to 1000$/,
    ],
    [
      "a strength that is no number",
      () => saveLora(at("x.safetensors"), randomLora(own)),
      { loras: { "x.safetensors": Number.NaN } },
      /the strength of .*x.safetensors is NaN; give a number$/,
    ],
    [
      "another element type",
      () =>
        saveSafetensors(at("x.safetensors"), {
          ...own,
          "conv_in.bias": castTensor(own["conv_in.bias"], "int32"),
        }),
      { unet: "x.safetensors" },
      /x.safetensors: conv_in.bias is int32; weights are floats of 32, 16 or 8 bits$/,
    ],
  ])("%s", async (_, write, options: { unet?: string; loras?: Record<string, number> }, message) => {
    await write();
    const unet = options.unet && at(options.unet);
    const loras =
      options.loras && Object.fromEntries(Object.entries(options.loras).map(([k, v]) => [at(k), v]));
    await expect(SDXL.load(TINY, { unet, loras })).rejects.toThrow(message);
  });
});

describe("few-step weights of a model folder", () => {
  const one = samplingMetadata({ steps: 1, predictionType: "sample", spacing: "trailing", guidance: 1 });
  async function folder(fewstep: object): Promise<string> {
    cpSync(TINY, at("model"), { recursive: true });
    await saveSafetensors(at("model/one.safetensors"), changed(own, 5), one);
    await saveLora(at("model/four.safetensors"), randomLora(own), { metadata: LIGHTNING });
    put("model/model_index.json", JSON.stringify({ fewstep: { steps: 20, guidance: 3, ...fewstep } }));
    return at("model");
  }
  const files = { 1: "one.safetensors", 4: "four.safetensors" };

  test("are chosen by step count", async () => {
    const model = await folder({ lightning: { default: 4, files } });
    const defaults = async (options: object) => {
      await using sdxl = await SDXL.load(model, options);
      const { steps, guidance, schedule } = sdxl.info.defaults;
      return { steps, guidance, schedule, distilled: sdxl.info.distilled };
    };
    const four = { steps: 4, guidance: 1, schedule: "trailing", distilled: 4 };
    const teacher = { steps: 20, guidance: 3, schedule: "leading", distilled: undefined };
    expect(await defaults({})).toEqual(four);
    expect(await defaults({ steps: 4 })).toEqual(four);
    expect(await defaults({ steps: 1 })).toEqual({ ...four, steps: 1, distilled: 1 });
    expect(await defaults({ steps: 8 })).toEqual(teacher);
    expect(await defaults({ unet: UNET })).toEqual(teacher);
    expect(await defaults({ loras: { [at("model/four.safetensors")]: 1 } })).toEqual(four);
    expect(await picture({ steps: 8 }, undefined, model)).toEqual(plain);
    const asked = await picture({ unet: at("model/one.safetensors") }, {});
    expect(await picture({ steps: 1 }, {}, model)).toEqual(asked);
  });

  test.each<[string, object, RegExp]>([
    [
      "a path upwards",
      { default: 4, files: { 4: "../four.safetensors" } },
      /model_index.json: fewstep.lightning.files.4 is "..\/four.safetensors"; give the name of a/,
    ],
    [
      "an absolute path",
      { default: 4, files: { 4: "/four.safetensors" } },
      /files.4 is "\/four.safetensors"; give the name of a/,
    ],
    ["a path into a folder", { default: 4, files: { 4: "unet/four.safetensors" } }, /give the name of a/],
    ["a Windows path", { default: 4, files: { 4: "..\\four.safetensors" } }, /give the name of a/],
    [
      "another kind of file",
      { default: 4, files: { 4: "four.bin" } },
      /give the name of a .safetensors file in the model folder$/,
    ],
    [
      "a default without file",
      { default: 2, files: { 4: "four.safetensors" } },
      /fewstep.lightning.default is 2; files has 4$/,
    ],
    [
      "a key that is no count",
      { default: 4, files: { four: "four.safetensors" } },
      /fewstep.lightning.files.four is .*; /,
    ],
    ["a list", [], /fewstep.lightning is \[\]; /],
    [
      "a file that is not there",
      { default: 8, files: { 8: "eight.safetensors" } },
      /eight.safetensors: no such file$/,
    ],
    [
      "a link out of the folder",
      { default: 4, files: { 4: "link.safetensors" } },
      /link.safetensors: leads to .*elsewhere.safetensors, outside the model folder; put the file itself there$/,
    ],
    [
      "a file for another count",
      { default: 8, files: { 8: "four.safetensors" } },
      /four.safetensors is listed for 8 steps, but says 4 itself; mend model_index.json$/,
    ],
    [
      "a file that does not say its count",
      { default: 8, files: { 8: "silent.safetensors" } },
      /silent.safetensors is listed for 8 steps, but says nothing itself; mend/,
    ],
  ])("%s is refused", async (_, lightning, message) => {
    const model = await folder({ lightning });
    await saveSafetensors(at("model/silent.safetensors"), own);
    await saveSafetensors(at("elsewhere.safetensors"), own, LIGHTNING);
    symlinkSync(at("elsewhere.safetensors"), at("model/link.safetensors"));
    await expect(SDXL.load(model)).rejects.toThrow(message);
  });

  test.each([
    ["steps", { steps: 0 }, /model_index.json: fewstep.steps is 0; /],
    ["guidance", { guidance: "x" }, /fewstep.guidance is "x"; /],
  ])("%s of the folder that make no picture are refused", async (_, fewstep, message) => {
    await expect(SDXL.load(await folder(fewstep))).rejects.toThrow(message);
  });
});
