/** @file The LoRA of SDXL-Lightning: its keys, by rule, on the UNet of the true SDXL. */

import { describe, expect, test } from "vitest";
import { floats, type HostTensor } from "../../src/tensor/index.ts";
import { readLora, SafetensorsFile, saveLora, saveSafetensors, unetTable } from "../../src/weights/index.ts";
import { at } from "../data/temporary.ts";
import { SDXL, unetParameters } from "./sdxl.ts";

/** Paths of its modules (Lin et al. 2024 §3.6): all but the ends and the shared embeddings. */
function lightningModules(): string[] {
  const modules: string[] = [];
  const resnet = (path: string, shortcut: boolean): void => {
    const names = ["conv1", "time_emb_proj", "conv2", ...(shortcut ? ["conv_shortcut"] : [])];
    modules.push(...names.map((name) => `${path}.${name}`));
  };
  const attention = (path: string, depth: number): void => {
    modules.push(`${path}.proj_in`, `${path}.proj_out`);
    for (let i = 0; i < depth; i++) {
      const block = `${path}.transformer_blocks.${i}`;
      for (const attn of ["attn1", "attn2"])
        modules.push(...["to_q", "to_k", "to_v", "to_out.0"].map((name) => `${block}.${attn}.${name}`));
      modules.push(`${block}.ff.net.0.proj`, `${block}.ff.net.2`);
    }
  };
  for (const [i, depth] of [0, 2, 10].entries()) {
    for (const j of [0, 1]) {
      resnet(`down_blocks.${i}.resnets.${j}`, i > 0 && j === 0);
      if (depth > 0) attention(`down_blocks.${i}.attentions.${j}`, depth);
    }
    if (i < 2) modules.push(`down_blocks.${i}.downsamplers.0.conv`);
  }
  resnet("mid_block.resnets.0", false);
  attention("mid_block.attentions.0", 10);
  resnet("mid_block.resnets.1", false);
  for (const [i, depth] of [10, 2, 0].entries()) {
    for (const j of [0, 1, 2]) {
      resnet(`up_blocks.${i}.resnets.${j}`, true);
      if (depth > 0) attention(`up_blocks.${i}.attentions.${j}`, depth);
    }
    if (i < 2) modules.push(`up_blocks.${i}.upsamplers.0.conv`);
  }
  return modules;
}

const shapes = new Map(unetParameters(SDXL).map(({ name, shape }) => [name, shape]));
const modules = lightningModules();
const table = unetTable(SDXL);
const aliases = new Map(
  [...shapes.keys()].map((name) => {
    const path = name.replace(/\.\w+$/, "");
    return [table.toTheirs(path) ?? path, path];
  }),
);

/** Of rank 1, so that it is small. */
function adapter(): Map<string, { down: HostTensor; up: HostTensor; alpha: number }> {
  return new Map(
    modules.map((path) => {
      const [out, ...rest] = shapes.get(`${path}.weight`)!;
      const up = floats([out, 1, ...rest.slice(1).map(() => 1)]);
      return [path, { down: floats([1, ...rest]), up, alpha: 1 }];
    }),
  );
}

async function changed(path: string): Promise<string[]> {
  await using file = await SafetensorsFile.open(path);
  const { deltas, ignored } = await readLora(file, { unet: { parameters: shapes, aliases } });
  expect(ignored).toEqual([]);
  return [...deltas.get("unet")!.keys()].sort();
}

test("788 modules, 196,751,360 parameters at rank 64", () => {
  expect(new Set(modules).size).toBe(788);
  const sizes = modules.map((path) => {
    const [out, ...rest] = shapes.get(`${path}.weight`)!;
    return 64 * (out + rest.reduce((a, b) => a * b, 1));
  });
  expect(sizes.reduce((a, b) => a + b)).toBe(196_751_360);
});

describe("its 2,364 tensors fit the UNet, none missing and none left over", () => {
  const weights = modules.map((path) => `${path}.weight`).sort();

  test("as this project writes them: kohya's names of diffusers' paths", async () => {
    await saveLora(at("a.safetensors"), adapter(), { dtype: "float16" });
    await using file = await SafetensorsFile.open(at("a.safetensors"));
    const expected = modules.flatMap((path) =>
      ["lora_down.weight", "lora_up.weight", "alpha"].map(
        (part) => `lora_unet_${path.replaceAll(".", "_")}.${part}`,
      ),
    );
    expect(expected.length).toBe(2364);
    expect([...file.entries.keys()].sort()).toEqual(expected.sort());
    expect(await changed(at("a.safetensors"))).toEqual(weights);
  });

  test.each<[string, (path: string) => string, readonly [string, string]]>([
    [
      "kohya's names of a checkpoint's",
      (path) => `lora_unet_${table.toTheirs(path)!.replaceAll(".", "_")}`,
      ["lora_down", "lora_up"],
    ],
    ["ComfyUI's", (path) => `diffusion_model.${table.toTheirs(path)}`, ["lora_down", "lora_up"]],
    ["PEFT's", (path) => `base_model.model.${path}`, ["lora_A", "lora_B"]],
    ["diffusers'", (path) => `unet.${path}`, ["lora.down", "lora.up"]],
    [
      "old diffusers'",
      (path) => `unet.${path.replace(/\.(to_[qkv]|to_out)(\.0)?$/, ".processor.$1_lora")}`,
      [".down", ".up"],
    ],
  ])("%s", async (_, rename, parts) => {
    const tensors: Record<string, HostTensor> = {};
    for (const [path, { down, up }] of adapter()) {
      const name = rename(path);
      const [a, b] = parts[0] === ".down" && !name.endsWith("_lora") ? ["lora.down", "lora.up"] : parts;
      const dot = a.startsWith(".") ? "" : ".";
      tensors[`${name}${dot}${a}.weight`] = down;
      tensors[`${name}${dot}${b}.weight`] = up;
    }
    expect(Object.keys(tensors).length).toBe(2 * 788);
    await saveSafetensors(at("a.safetensors"), tensors);
    expect(await changed(at("a.safetensors"))).toEqual(weights);
  });
});

test("a LoRA for Stable Diffusion 1.5 is told", async () => {
  const name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
  await saveSafetensors(at("a.safetensors"), {
    [`${name}.lora_down.weight`]: floats([4, 768]),
    [`${name}.lora_up.weight`]: floats([640, 4]),
  });
  await expect(changed(at("a.safetensors"))).rejects.toThrow(
    /is a LoRA of another network, by its looks Stable Diffusion 1.x: 1 of another shape: .*down is \[4,768\], needs \[4,2048\]/,
  );
});

test.each([
  ["FLUX.1", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", {}],
  ["FLUX.1", "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", {}],
  ["Stable Diffusion 3", "lora_unet_joint_blocks_0_context_block_attn_qkv.lora_down.weight", {}],
  ["Stable Diffusion 2.x", "lora_unet_other.lora_down.weight", { ss_base_model_version: "sd_v2_768_v" }],
])("a LoRA for %s is told by %s", async (base, key, metadata) => {
  await saveSafetensors(at("a.safetensors"), { [key]: floats([4, 8]) }, metadata);
  await expect(changed(at("a.safetensors"))).rejects.toThrow(
    `a.safetensors is a LoRA of another network, by its looks ${base}: 1 left over: ${key}`,
  );
});
