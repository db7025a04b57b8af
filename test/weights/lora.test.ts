/** @file Adapter files: what is written comes back, and what fits no module is named. */

import { describe, expect, test } from "vitest";
import { castTensor, floats, Generator, type HostTensor } from "../../src/tensor/index.ts";
import { readLora, SafetensorsFile, saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";

const SHAPES = new Map<string, readonly number[]>([
  ["mid_block.resnets.0.conv1", [5, 3, 3, 3]],
  ["mid_block.attentions.0.to_out.0", [4, 6]],
  ["mid.proj_in", [4, 3, 1, 1]],
]);
const g = new Generator(1);
const modules = new Map(
  [...SHAPES].map(([path, [out, ...rest]]) => [
    path,
    { down: g.randn([2, ...rest]), up: g.randn([out, 2, ...rest.slice(1).map(() => 1)]), alpha: 8 },
  ]),
);

async function written(tensors: Record<string, HostTensor>): Promise<string> {
  await saveSafetensors(at("a.safetensors"), tensors);
  return at("a.safetensors");
}

async function read(path: string, aliases?: ReadonlyMap<string, string>) {
  await using file = await SafetensorsFile.open(path);
  const found = await readLora(file, SHAPES, aliases);
  const first = found.get("mid_block.resnets.0.conv1")!;
  const bytes = await file.bytes(first.up.offset, first.up.bytes);
  return { found, metadata: file.metadata, up: new Float32Array(bytes.buffer) };
}

/** The adapter under other names; without alpha. */
function renamed(down: (path: string) => string, up: (path: string) => string): Record<string, HostTensor> {
  return Object.fromEntries(
    [...modules].flatMap(([path, m]) => [
      [down(path), m.down],
      [up(path), m.up],
    ]),
  );
}

test("written and read back", async () => {
  await saveLora(at("a.safetensors"), modules, { metadata: { "fewstep.steps": "4" } });
  const { found, metadata, up } = await read(at("a.safetensors"));
  expect(metadata).toEqual({ format: "pt", "fewstep.steps": "4" });
  expect([...found.keys()]).toEqual([...SHAPES.keys()]);
  expect(found.get("mid_block.resnets.0.conv1")).toMatchObject({
    rank: 2,
    alpha: 8,
    down: { shape: [2, 3, 3, 3] },
    up: { shape: [5, 2, 1, 1] },
  });
  expect(up).toEqual(modules.get("mid_block.resnets.0.conv1")!.up.data);
  await using file = await SafetensorsFile.open(at("a.safetensors"));
  expect([...file.entries.keys()].slice(3, 6)).toEqual([
    "lora_unet_mid_block_attentions_0_to_out_0.lora_down.weight",
    "lora_unet_mid_block_attentions_0_to_out_0.lora_up.weight",
    "lora_unet_mid_block_attentions_0_to_out_0.alpha",
  ]);
});

test("half precision, alpha as well", async () => {
  await saveLora(at("a.safetensors"), modules, { dtype: "float16" });
  const { found } = await read(at("a.safetensors"));
  expect(found.get("mid.proj_in")).toMatchObject({ alpha: 8, down: { dtype: "float16" } });
});

describe("other namings", () => {
  test.each([
    ["unet.", ".weight"],
    ["base_model.model.unet.", ".weight"],
    ["base_model.model.", ".default.weight"],
    ["", ".weight"],
  ])("PEFT %s…%s; alpha is the rank", async (prefix, end) => {
    const path = await written(
      renamed(
        (p) => `${prefix}${p}.lora_A${end}`,
        (p) => `${prefix}${p}.lora_B${end}`,
      ),
    );
    const { found } = await read(path);
    expect([...found.keys()]).toEqual([...SHAPES.keys()]);
    expect([...found.values()].map(({ alpha, rank }) => [alpha, rank])).toEqual([
      [2, 2],
      [2, 2],
      [2, 2],
    ]);
  });

  test("aliases of paths", async () => {
    const tensors = renamed(
      (p) =>
        `lora_unet_${p.replace(/^mid_block.resnets.0.conv1$/, "middle.0.in").replaceAll(".", "_")}.lora_down.weight`,
      (p) =>
        `lora_unet_${p.replace(/^mid_block.resnets.0.conv1$/, "middle.0.in").replaceAll(".", "_")}.lora_up.weight`,
    );
    const { found } = await read(
      await written(tensors),
      new Map([["middle.0.in", "mid_block.resnets.0.conv1"]]),
    );
    expect(found.size).toBe(3);
  });

  test("linear layers stored as 1×1 kernels", async () => {
    const tensors = renamed(
      (p) => `lora_unet_${p.replaceAll(".", "_")}.lora_down.weight`,
      (p) => `lora_unet_${p.replaceAll(".", "_")}.lora_up.weight`,
    );
    const key = "lora_unet_mid_block_attentions_0_to_out_0.lora_down.weight";
    tensors[key] = { ...tensors[key], shape: [2, 6, 1, 1] };
    const { found } = await read(await written(tensors));
    expect(found.get("mid_block.attentions.0.to_out.0")!.down.shape).toEqual([2, 6]);
  });
});

describe("refused in one sentence", () => {
  const KEY = "lora_unet_mid_proj_in";
  const part = {
    [`${KEY}.lora_down.weight`]: floats([2, 3, 1, 1]),
    [`${KEY}.lora_up.weight`]: floats([4, 2, 1, 1]),
  };
  test.each<[string, Record<string, HostTensor>, RegExp]>([
    [
      "a text encoder's modules",
      { ...part, "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": floats([2, 3]) },
      /a.safetensors is a LoRA of another network: 1 left over: lora_te1_text_model\S*$/,
    ],
    [
      "modules that the network does not have",
      { ...part, "lora_unet_mid_proj_out.lora_down.weight": floats([2, 3]), "x.hada_w1_a": floats([1]) },
      /2 left over: x.hada_w1_a, lora_unet_mid_proj_out.lora_down.weight$/,
    ],
    [
      "half a module",
      { [`${KEY}.lora_up.weight`]: floats([4, 2, 1, 1]) },
      /1 without down or up: mid_proj_in$/,
    ],
    [
      "other ranks",
      { ...part, [`${KEY}.lora_up.weight`]: floats([4, 3, 1, 1]) },
      /1 of another shape: mid_proj_in \(\[2,3,1,1\] and \[4,3,1,1\] for \[4,3,1,1\]\)$/,
    ],
    [
      "rank 0",
      { [`${KEY}.lora_down.weight`]: floats([0, 3, 1, 1]), [`${KEY}.lora_up.weight`]: floats([4, 0, 1, 1]) },
      /1 of another shape/,
    ],
    [
      "a module under two names",
      {
        ...part,
        "unet.mid.proj_in.lora_A.weight": floats([2, 3, 1, 1]),
        "unet.mid.proj_in.lora_B.weight": floats([4, 2, 1, 1]),
      },
      /2 left over: unet.mid.proj_in.lora_A.weight/,
    ],
    [
      "an alpha of many numbers",
      { ...part, [`${KEY}.alpha`]: floats([2]) },
      /"lora_unet_mid_proj_in.alpha" is float32\[2\]; an alpha is one number$/,
    ],
    [
      "an alpha that is no number",
      { ...part, [`${KEY}.alpha`]: castTensor(floats([], [Number.NaN]), "float16") },
      /alpha" is NaN; an alpha is one number$/,
    ],
    [
      "no adapter",
      { "conv_in.weight": floats([1]) },
      /a.safetensors is no LoRA: it has no lora_down or lora_A tensors$/,
    ],
  ])("%s", async (_, tensors, message) => {
    await expect(read(await written(tensors))).rejects.toThrow(message);
  });

  test("two modules of one name, when writing", async () => {
    const m = { down: floats([1, 1]), up: floats([1, 1]), alpha: 1 };
    const twice = new Map([
      ["a.b", m],
      ["a_b", m],
    ]);
    await expect(saveLora(at("a.safetensors"), twice)).rejects.toThrow(
      "two modules are called lora_unet_a_b",
    );
  });
});
