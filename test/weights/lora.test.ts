/** @file Adapter files: what is written comes back, and what fits no module is named. */

import { describe, expect, test } from "vitest";
import { castTensor, floats, Generator, type HostTensor } from "../../src/tensor/index.ts";
import {
  readLora,
  SafetensorsFile,
  saveLora,
  saveSafetensors,
  type TensorEntry,
} from "../../src/weights/index.ts";
import { loraKeys } from "../../src/weights/lora_keys.ts";
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

async function read(path: string, aliases?: ReadonlyMap<string, string>, config?: unknown) {
  await using file = await SafetensorsFile.open(path);
  const parameters = new Map([...SHAPES].map(([path, shape]) => [`${path}.weight`, shape]));
  parameters.set("mid.proj_in.bias", [4]);
  const { deltas, ignored } = await readLora(file, { unet: { parameters, aliases } }, config);
  return { found: deltas.get("unet")!, ignored, metadata: file.metadata };
}

/** Names of changed parameters. */
const CHANGED = [...SHAPES.keys()].map((path) => `${path}.weight`);

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
  const { found, metadata } = await read(at("a.safetensors"));
  expect(metadata).toEqual({ format: "pt", "fewstep.steps": "4" });
  expect([...found.keys()]).toEqual(CHANGED);
  const conv = found.get("mid_block.resnets.0.conv1.weight")!;
  expect(conv).toMatchObject({
    kind: "product",
    rank: 2,
    scale: 4,
    factors: { down: { shape: [2, 27] }, up: { shape: [5, 2] } },
  });
  await using file = await SafetensorsFile.open(at("a.safetensors"));
  const up = await file.load(conv.factors.up as TensorEntry);
  expect(up.data).toEqual(modules.get("mid_block.resnets.0.conv1")!.up.data);
  expect([...file.entries.keys()].slice(3, 6)).toEqual([
    "lora_unet_mid_block_attentions_0_to_out_0.lora_down.weight",
    "lora_unet_mid_block_attentions_0_to_out_0.lora_up.weight",
    "lora_unet_mid_block_attentions_0_to_out_0.alpha",
  ]);
});

test("half precision, alpha as well", async () => {
  await saveLora(at("a.safetensors"), modules, { dtype: "float16" });
  const { found } = await read(at("a.safetensors"));
  expect(found.get("mid.proj_in.weight")).toMatchObject({
    scale: 4,
    factors: { down: { dtype: "float16" } },
  });
});

describe("other namings", () => {
  test.each<[string, string, string]>([
    ["unet.", ".lora_A.weight", ".lora_B.weight"],
    ["base_model.model.unet.", ".lora_A.weight", ".lora_B.weight"],
    ["unet.base_model.model.", ".lora_A.weight", ".lora_B.weight"],
    ["base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"],
    ["", ".lora_A.weight", ".lora_B.weight"],
    ["unet.", ".lora.down.weight", ".lora.up.weight"],
    ["unet.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"],
    ["diffusion_model.", ".lora_down.weight", ".lora_up.weight"],
    ["model.diffusion_model.", ".lora_A.weight", ".lora_B.weight"],
  ])("%s…%s; alpha is the rank", async (prefix, down, up) => {
    const path = await written(
      renamed(
        (p) => `${prefix}${p}${down}`,
        (p) => `${prefix}${p}${up}`,
      ),
    );
    const { found } = await read(path);
    expect([...found.keys()]).toEqual(CHANGED);
    expect([...found.values()].map(({ scale, rank }) => [scale, rank])).toEqual([
      [1, 2],
      [1, 2],
      [1, 2],
    ]);
  });

  test("LyCORIS in a wrapper", async () => {
    const path = await written(
      renamed(
        (p) => `lycoris_${p.replaceAll(".", "_")}.lora_down.weight`,
        (p) => `lycoris_${p.replaceAll(".", "_")}.lora_up.weight`,
      ),
    );
    expect([...(await read(path)).found.keys()]).toEqual(CHANGED);
  });

  test("attention processors of old diffusers", async () => {
    const parameters = new Map([
      ["mid.attn1.to_q.weight", [4, 4]],
      ["mid.attn1.to_out.0.weight", [4, 4]],
    ]);
    const tensors = Object.fromEntries(
      ["to_q", "to_out"].flatMap((name) => [
        [`unet.mid.attn1.processor.${name}_lora.down.weight`, floats([2, 4])],
        [`unet.mid.attn1.processor.${name}_lora.up.weight`, floats([4, 2])],
      ]),
    );
    await using file = await SafetensorsFile.open(await written(tensors));
    const { deltas } = await readLora(file, { unet: { parameters } });
    expect([...deltas.get("unet")!.keys()]).toEqual([...parameters.keys()]);
  });

  test("text encoders, of kohya, diffusers and old diffusers", async () => {
    const path = "text_model.encoder.layers.0.self_attn";
    const parameters = new Map(["q_proj", "out_proj"].map((name) => [`${path}.${name}.weight`, [4, 4]]));
    parameters.set("text_projection.weight", [3, 4]);
    const flat = path.replaceAll(".", "_");
    const both = (down: string, up: string, out = 4) => ({ [down]: floats([2, 4]), [up]: floats([out, 2]) });
    const tensors = {
      ...both(`lora_te1_${flat}_q_proj.lora_down.weight`, `lora_te1_${flat}_q_proj.lora_up.weight`),
      ...both(`text_encoder.${path}.to_out_lora.down.weight`, `text_encoder.${path}.to_out_lora.up.weight`),
      ...both(`lora_te2_${flat}_q_proj.lora_down.weight`, `lora_te2_${flat}_q_proj.lora_up.weight`),
      ...both(
        `text_encoder_2.${path}.out_proj.lora_linear_layer.down.weight`,
        `text_encoder_2.${path}.out_proj.lora_linear_layer.up.weight`,
      ),
      ...both("lora_te2_text_projection.lora_down.weight", "lora_te2_text_projection.lora_up.weight", 3),
    };
    await using file = await SafetensorsFile.open(await written(tensors));
    const target = { parameters };
    const { deltas } = await readLora(file, { text_encoder: target, text_encoder_2: target });
    expect([...deltas.get("text_encoder")!.keys()]).toEqual([...parameters.keys()].slice(0, 2));
    expect([...deltas.get("text_encoder_2")!.keys()]).toEqual([...parameters.keys()]);
  });

  test("text encoders, of ComfyUI", async () => {
    const path = "text_model.encoder.layers.0.mlp.fc1";
    const parameters = new Map([[`${path}.weight`, [4, 4]]]);
    const keys = ["l", "g"].map((name) => `text_encoders.clip_${name}.transformer.${path}`);
    const tensors = Object.fromEntries(
      keys.flatMap((key) => [
        [`${key}.lora_down.weight`, floats([2, 4])],
        [`${key}.lora_up.weight`, floats([4, 2])],
      ]),
    );
    await using file = await SafetensorsFile.open(await written(tensors));
    expect(loraKeys(file.entries.keys()).naming).toBe("ComfyUI");
    const { deltas } = await readLora(file, {
      text_encoder: { parameters },
      text_encoder_2: { parameters },
    });
    for (const network of ["text_encoder", "text_encoder_2"] as const)
      expect([...deltas.get(network)!.keys()]).toEqual([...parameters.keys()]);
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
    expect(found.get("mid_block.attentions.0.to_out.0.weight")!.factors.down.shape).toEqual([2, 6]);
  });
});

describe("LoKr", () => {
  const KEY = "lora_unet_mid_block_attentions_0_to_out_0"; // [4,6]
  const alpha = { [`${KEY}.alpha`]: floats([], [3]) };
  const w1 = { a: floats([2, 1], [1, 2]), b: floats([1, 3], [1, -1, 3]) };
  const w2 = { a: floats([2, 2], [1, 0, 2, 1]), b: floats([2, 2], [1, 2, 3, 4]) };

  test("of products on both sides; alpha over the rank of the second", async () => {
    const { found } = await read(
      await written({
        ...alpha,
        [`${KEY}.lokr_w1_a`]: w1.a,
        [`${KEY}.lokr_w1_b`]: w1.b,
        [`${KEY}.lokr_w2_a`]: w2.a,
        [`${KEY}.lokr_w2_b`]: w2.b,
      }),
    );
    expect(found.get("mid_block.attentions.0.to_out.0.weight")).toMatchObject({
      kind: "kronecker",
      scale: 1.5,
      factors: {
        left: floats([2, 3], [1, -1, 3, 2, -2, 6]),
        right: floats([2, 2], [1, 2, 5, 8]),
      },
    });
  });

  test("of whole matrices has no rank, and so no scale", async () => {
    const { found } = await read(
      await written({ ...alpha, [`${KEY}.lokr_w1`]: floats([2, 3]), [`${KEY}.lokr_w2`]: w2.a }),
    );
    expect(found.get("mid_block.attentions.0.to_out.0.weight")).toMatchObject({ scale: 1 });
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
      "modules of a text encoder that is not there",
      { ...part, "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": floats([2, 3]) },
      /a.safetensors is a LoRA of another network: 1 left over: lora_te1_text_model\S*$/,
    ],
    [
      "modules that the network does not have",
      { ...part, "lora_unet_mid_proj_out.lora_down.weight": floats([2, 3]), "x.hada_w1_a": floats([1]) },
      /2 left over: lora_unet_mid_proj_out.lora_down.weight, x.hada_w1_a$/,
    ],
    [
      "half a module",
      { [`${KEY}.lora_up.weight`]: floats([4, 2, 1, 1]) },
      /1 without all its parts: mid_proj_in$/,
    ],
    [
      "other ranks",
      { ...part, [`${KEY}.lora_up.weight`]: floats([4, 3, 1, 1]) },
      /1 of another shape: mid_proj_in \(up is \[4,3,1,1\], needs \[4,2\]\)$/,
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
      "two kinds of change of one weight",
      { ...part, [`${KEY}.diff`]: floats([4, 3, 1, 1]) },
      /1 of another shape: mid_proj_in \(changed in two ways\)$/,
    ],
    ["a magnitude alone", { [`${KEY}.dora_scale`]: floats([4, 1]) }, /1 without all its parts: mid_proj_in$/],
    [
      "a magnitude of another length",
      { ...part, [`${KEY}.dora_scale`]: floats([5, 1]) },
      /mid_proj_in \(dora_scale is \[5,1\], needs one for each of 4 outputs\)$/,
    ],
    [
      "a LoKr that does not divide the weight",
      { [`${KEY}.lokr_w1`]: floats([3, 1]), [`${KEY}.lokr_w2`]: floats([1, 3]) },
      /mid_proj_in \(lokr_w1 is \[3,1\], which does not divide \[4,3,1,1\]\)$/,
    ],
    [
      "half a LoHa",
      { [`${KEY}.hada_w1_a`]: floats([4, 2]), [`${KEY}.hada_w1_b`]: floats([2, 3]) },
      /1 without all its parts: mid_proj_in$/,
    ],
    [
      "a bias that is not there",
      { "lora_unet_mid_block_resnets_0_conv1.diff_b": floats([5]) },
      /mid_block_resnets_0_conv1 \(the module has no bias\)$/,
    ],
    [
      "OFT",
      { ...part, [`${KEY}.oft_blocks`]: floats([2, 2, 2]) },
      /1 left over: lora_unet_mid_proj_in.oft_blocks$/,
    ],
    [
      "no adapter",
      { "conv_in.weight": floats([1]) },
      /a.safetensors is no LoRA: it has no lora_down, lora_A, hada, lokr or diff tensors$/,
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
