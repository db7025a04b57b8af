/** @file Adapters of single pictures: what is read and compiled for them, and tags in prompts. */

import { cpSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { basename, join } from "node:path";
import { afterEach, describe, expect, test, vi } from "vitest";
import {
  addedStrengths,
  type GenerateOptions,
  loraFolder,
  loraTags,
  promptLoras,
  resolveTags,
  SDXL,
} from "../../src/pipelines/index.ts";
import { platform } from "../../src/platform/index.ts";
import { WeightFiles } from "../../src/runtime/place.ts";
import { floats } from "../../src/tensor/index.ts";
import { SafetensorsFile, saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { goldenPath } from "../parity/golden.ts";
import { apart, merged, picture, randomLora, TINY, unetTensors } from "./tiny.ts";

afterEach(() => vi.restoreAllMocks());

const KOHYA = goldenPath("loras/kohya.safetensors");
const LYCORIS = goldenPath("loras/lycoris.safetensors");

const QUICK: GenerateOptions = { steps: 1, guidance: 1 };

/** Bytes of one picture, and how many programs were compiled and had their weights read for it. */
function watched(sdxl: SDXL) {
  const compiled = vi.spyOn(platform().InferenceSession, "create");
  const opened = vi.spyOn(WeightFiles, "open");
  return async (options: GenerateOptions = {}, prompt = "a red lighthouse") => {
    compiled.mockClear();
    opened.mockClear();
    const [made] = await sdxl.textToImage(prompt, { ...QUICK, ...options });
    const [programs, base] = [compiled, opened].map(({ mock }) => mock.calls.length);
    return { data: made.data, settings: made.settings, compiled: programs, base };
  };
}

test("another strength, or another adapter of the same modules, reads and compiles nothing again", async () => {
  const own = await unetTensors();
  const [a, b] = [randomLora(own), randomLora(own, { seed: 2, rank: 5 })];
  await saveLora(at("a.safetensors"), a);
  await saveLora(at("b.safetensors"), b);
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const paint = watched(sdxl);
  const [A, B] = [at("a.safetensors"), at("b.safetensors")];

  const plain = await paint();
  expect(plain).toMatchObject({ compiled: 0, base: 0 });
  expect(await paint({ loras: { [A]: 0.5 } })).toMatchObject({ compiled: 1, base: 1 }); // the UNet, with room
  const read = vi.spyOn(SafetensorsFile.prototype, "load");
  for (const [loras, count] of [
    [{ [A]: 0.9 }, 0],
    [{ [A]: { unet: -0.4, text: 3 } }, 0],
    [{ [B]: 1 }, 3 * b.size],
    [{ [A]: 0.3, [B]: 0.7 }, 0],
    [{ [A]: 0.5 }, 0],
  ] as const) {
    read.mockClear();
    const made = await paint({ loras });
    expect(made).toMatchObject({ compiled: 0, base: 0 });
    expect(read).toHaveBeenCalledTimes(count);
  }
  const without = await paint();
  expect(without).toMatchObject({ compiled: 0, base: 0 });
  expect(apart(without.data, plain.data)).toBeLessThanOrEqual(1);

  const both = await paint({ loras: { [A]: 0.3, [B]: 0.7 } });
  await saveSafetensors(at("m.safetensors"), merged(merged(own, a, 0.3), b, 0.7));
  expect(apart(both.data, await picture({ unet: at("m.safetensors") }, QUICK))).toBeLessThanOrEqual(1);
  expect(apart(both.data, plain.data)).toBeGreaterThan(2);
});

test("more modules need another program, fewer do not", async () => {
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const paint = watched(sdxl);
  expect(await paint({ loras: { [KOHYA]: 1 } })).toMatchObject({ compiled: 2, base: 2 });
  expect(await paint({ loras: { [LYCORIS]: 1 } })).toMatchObject({ compiled: 2, base: 2 });
  expect(await paint({ loras: { [LYCORIS]: 0.5, [KOHYA]: 0.5 } })).toMatchObject({ compiled: 0, base: 0 });
  expect(await paint({ loras: { [LYCORIS]: 0 } })).toMatchObject({ compiled: 0, base: 0 });
});

test("strengths of UNet and text encoders apart", async () => {
  await using sdxl = await SDXL.load(TINY, { threads: 1, promptCache: 8 });
  const paint = watched(sdxl);
  const of = async (unet: number, text: number) => (await paint({ loras: { [KOHYA]: { unet, text } } })).data;
  const [none, unet, text, all] = [await of(0, 0), await of(1, 0), await of(0, 1), await of(1, 1)];
  for (const [x, y] of [
    [none, unet],
    [none, text],
    [unet, all],
    [text, all],
    [unet, text],
  ])
    expect(apart(x, y)).toBeGreaterThan(0);
  expect(await of(0, 1)).toEqual(text); // no encoding of another strength is taken from the cache
  expect(apart(await of(0, 0), none)).toBeLessThanOrEqual(1);
  const { settings } = await paint({ loras: { [KOHYA]: { unet: 1, text: 0.5 } } });
  expect(settings.loras).toEqual([{ name: "kohya", strength: 1, textStrength: 0.5 }]);
});

test("two pictures at once keep their own adapters", async () => {
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const options = { steps: 3, guidance: 1 };
  const sets: GenerateOptions["loras"][] = [{ [KOHYA]: 1 }, undefined, { [LYCORIS]: 1 }, { [KOHYA]: 0.5 }];
  const at_once = await Promise.all(sets.map((loras) => sdxl.textToImage("x", { ...options, loras })));
  for (const [i, loras] of sets.entries()) {
    const [alone] = await sdxl.textToImage("x", { ...options, loras });
    expect(apart(at_once[i][0].data, alone.data)).toBeLessThanOrEqual(1);
  }
});

test("settings of an adapter count for its pictures alone, and its leftovers are told", async () => {
  const lora = randomLora(await unetTensors());
  await saveLora(at("four.safetensors"), lora, {
    metadata: { "fewstep.steps": "4", "fewstep.guidance": "1" },
  });
  await saveSafetensors(at("embedded.safetensors"), {
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": floats([1, 8]),
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": floats([8, 1]),
    "bundle_emb.x.string_to_param.*": floats([1, 2]),
    "lora_unet_mid_block_attentions_0_proj_out.alpha": floats([], [1]),
  });
  await using sdxl = await SDXL.load(TINY, { threads: 1 });
  const [few] = await sdxl.textToImage("x", { loras: { [at("four.safetensors")]: 1 } });
  expect(few.settings).toMatchObject({ steps: 4, guidance: 1 });
  expect(sdxl.warnings({ steps: 2 })).toEqual(["the model was distilled for 4 steps; 2 will look worse"]);
  const [own] = await sdxl.textToImage("x", { loras: { [at("embedded.safetensors")]: 1 }, steps: 1 });
  expect(own.settings.guidance).toBe(5);
  expect(sdxl.warnings({ steps: 1 })).toEqual([
    "embedded has 2 keys without use here, such as bundle_emb.x.string_to_param.*",
  ]);
  await sdxl.textToImage("x", QUICK);
  expect(sdxl.warnings({ steps: 2 })).toEqual([]);
});

describe("tags", () => {
  test.each<[string, string, object[]]>([
    ["a red apple", "a red apple", []],
    ["a  <b> (c:1.2)", "a  <b> (c:1.2)", []],
    ["a <lora:ink> b", "a b", [{ name: "ink", strength: { unet: 1, text: 1 } }]],
    ["<lora:ink:0.8>a", "a", [{ name: "ink", strength: { unet: 0.8, text: 0.8 } }]],
    ["a<lyco: ink v2 :-.5>", "a", [{ name: "ink v2", strength: { unet: -0.5, text: -0.5 } }]],
    ["a<lora:ink:0.5:0.8>", "a", [{ name: "ink", strength: { unet: 0.8, text: 0.5 } }]],
    ["a<lora:ink:0.5:unet=0.8>", "a", [{ name: "ink", strength: { unet: 0.8, text: 0.5 } }]],
    ["a<lora:ink:unet=2>", "a", [{ name: "ink", strength: { unet: 2, text: 1 } }]],
    [
      "x <lora:a:1>, <lora:b:2> y",
      "x , y",
      [
        { name: "a", strength: { unet: 1, text: 1 } },
        { name: "b", strength: { unet: 2, text: 2 } },
      ],
    ],
  ])("%s", (prompt, text, tags) => expect(loraTags(prompt)).toEqual({ text, tags }));

  test.each([
    "<lora:>",
    "<lora::1>",
    "<lora:ink:much>",
    "<lora:ink:1:2:3>",
    "<lora:ink:1e4>",
    "<lora:ink:101>",
    "<lora:a:NaN>",
  ])("%s is refused", (tag) =>
    expect(() => loraTags(`a ${tag}`)).toThrow(
      `"${tag}" is no adapter; write <lora:name:0.8>, or <lora:name:te=0.5:unet=0.8>`,
    ),
  );

  test("name files of a folder, below it too, and nothing outside", async () => {
    put("outside/secret.safetensors", "x");
    put("loras/ink.safetensors", "x");
    put("loras/style/paper.v2.safetensors", "x");
    put("loras/notes.txt", "x");
    symlinkSync(at("outside/secret.safetensors"), at("loras/link.safetensors"));
    symlinkSync(at("outside"), at("loras/more"));
    symlinkSync(at("nowhere"), at("loras/broken.safetensors"));
    symlinkSync(at("loras/ink.safetensors"), at("loras/alias.safetensors"));
    const known = await loraFolder(at("loras"));
    expect([...known.keys()].sort()).toEqual(["alias", "ink", "paper.v2"]);
    expect(basename(known.get("paper.v2")!)).toBe("paper.v2.safetensors");
    for (const name of ["../outside/secret", "secret", "link", "/etc/passwd", "style/paper.v2", "__proto__"])
      expect(() => resolveTags([{ name, strength: { unet: 1, text: 1 } }], known)).toThrow(
        /^there is no LoRA "\S*"; there are /,
      );
    await expect(loraFolder(at("nothing"))).rejects.toThrow(/nothing: no such folder$/);
  });

  test("a name that is not there is told with those near it", () => {
    const names = [
      "watercolor",
      "ink-wash",
      "oil",
      "pixel",
      "anime",
      "photo",
      "sketch",
      "clay",
      "neon",
      "lego",
    ];
    const known = new Map(names.map((name) => [name, name]));
    const ask = (name: string) => resolveTags([{ name, strength: { unet: 1, text: 1 } }], known);
    expect(() => ask("watercolour")).toThrow(/^there is no LoRA "watercolour"; there are watercolor, .*, …$/);
    expect(() => ask("Inkwash")).toThrow(/there are ink-wash, /);
    expect(() => resolveTags([{ name: "a", strength: { unet: 1, text: 1 } }], new Map())).toThrow(
      'there is no LoRA "a"; there are none',
    );
  });

  test("of one name add up, with those of the options", async () => {
    put("loras/ink.safetensors", "x");
    const { prompts, loras } = await promptLoras(["a <lora:ink:0.5> <lora:ink:0.2:0.1>"], at("loras"));
    expect(prompts).toEqual(["a"]);
    const [path] = Object.keys(loras);
    expect(loras[path]).toEqual({ unet: 0.6, text: 0.7 });
    expect(addedStrengths({ [path]: 1, other: 2 }, loras)).toEqual({
      [path]: { unet: 1.6, text: 1.7 },
      other: 2,
    });
  });

  test("in a prompt make the picture of the adapter, and are not in its text", async () => {
    await using sdxl = await SDXL.load(TINY, { threads: 1, loraFolder: goldenPath("loras") });
    const paint = watched(sdxl);
    const asked = await paint({ loras: { [KOHYA]: 0.7 } });
    const named = await paint({}, "a red lighthouse <lora:kohya:0.7>");
    expect(named.data).toEqual(asked.data);
    expect(named.settings).toMatchObject({
      prompt: "a red lighthouse",
      loras: [{ name: "kohya", strength: 0.7 }],
    });
    expect(apart(named.data, (await paint()).data)).toBeGreaterThan(2);
    await expect(paint({}, "a <lora:kohia>")).rejects.toThrow('there is no LoRA "kohia"; there are ');
    await expect(sdxl.textToImage(["a <lora:kohya>", "b"], QUICK)).rejects.toThrow(
      "prompts of one call name different LoRAs",
    );
    await using none = await SDXL.load(TINY, { threads: 1 });
    await expect(none.textToImage("a <lora:kohya>", QUICK)).rejects.toThrow(
      'the prompt names the LoRA "kohya", but no folder of LoRAs is given',
    );
  });
});

describe("folders with an adapter", () => {
  test("may name modules by PEFT's patterns", async () => {
    cpSync(goldenPath("loras/dora"), at("peft"), { recursive: true });
    await using sdxl = await SDXL.load(TINY, { threads: 1 });
    const drawn = async (alpha_pattern: Record<string, number>) => {
      const config = JSON.parse(readFileSync(goldenPath("loras/dora/adapter_config.json"), "utf8"));
      put("peft/adapter_config.json", JSON.stringify({ ...config, alpha_pattern }));
      return (await sdxl.textToImage("x", { ...QUICK, loras: { [at("peft")]: 1 } }))[0].data;
    };
    const expected = await drawn({ to_q: 40 });
    for (const like of [String.raw`.*attn\d\.to_q`, "to_(q|never)"]) {
      expect(await drawn({ [like]: 40, to_q: 1 }), like).toEqual(expected);
    }
    expect(apart(await drawn({ "^to_q": 40, o_q: 40 }), expected)).toBeGreaterThan(2);
    for (const like of ["(a+)+", "(", ".*.*.*.*"])
      await expect(drawn({ [like]: 1 })).rejects.toThrow(
        `alpha_pattern: pattern ${JSON.stringify(like)} is not read; write a simpler one`,
      );
  });

  test("without its file are refused", async () => {
    mkdirSync(at("empty"));
    await expect(SDXL.load(TINY, { loras: { [at("empty")]: 1 } })).rejects.toThrow(
      /empty has no LoRA: expected adapter_model.safetensors or pytorch_lora_weights.safetensors$/,
    );
  });

  test("with settings that are none are refused", async () => {
    const lora = randomLora(await unetTensors());
    mkdirSync(at("peft"));
    await saveSafetensors(join(at("peft"), "adapter_model.safetensors"), {
      "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight": lora.get(
        "mid_block.attentions.0.proj_in",
      )!.down,
      "base_model.model.mid_block.attentions.0.proj_in.lora_B.weight": lora.get(
        "mid_block.attentions.0.proj_in",
      )!.up,
    });
    put("peft/adapter_config.json", JSON.stringify({ r: 3, lora_alpha: "much" }));
    await expect(SDXL.load(TINY, { loras: { [at("peft")]: 1 } })).rejects.toThrow(
      /the adapter_config.json of .*adapter_model.safetensors: lora_alpha: /,
    );
  });
});
