/** @file Models with adapters in their weights: written in both layouts from both, and sampled as the adapters say. */

import { cpSync, existsSync } from "node:fs";
import { expect, test } from "vitest";
import { convertModel, SDXL, samplingMetadata } from "../../src/pipelines/index.ts";
import { castTensor, type HostTensor } from "../../src/tensor/index.ts";
import { loadSafetensors, SafetensorsFile, saveLora, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { goldenPath } from "../parity/golden.ts";
import { apart, merged, picture, randomLora, TINY, unetTensors } from "./tiny.ts";

const KOHYA = goldenPath("loras/kohya.safetensors");
const QUICK = { steps: 1, guidance: 1 };
const UNET = "unet/diffusion_pytorch_model.safetensors";

/** An adapter on the UNet of the tiny model, which says how it is sampled, and its modules. */
async function fewStepLora(path: string) {
  const modules = randomLora(await unetTensors());
  const settings = { steps: 4, guidance: 0, spacing: "trailing" } as const;
  await saveLora(path, modules, { metadata: samplingMetadata(settings) });
  return modules;
}

test("weights are what they were plus the change; what no adapter changes keeps its bits", async () => {
  const modules = await fewStepLora(at("lora.safetensors"));
  await convertModel(TINY, at("model"), { loras: { [at("lora.safetensors")]: 0.7 } });
  const { tensors } = await loadSafetensors(at("model", UNET));
  const own = await unetTensors();
  const expected = merged(own, modules, 0.7);
  expect(Object.keys(tensors).sort()).toEqual(Object.keys(own).sort());
  let changed = 0;
  for (const [name, { dtype, data }] of Object.entries(tensors)) {
    expect(dtype).toBe(own[name].dtype);
    if (expected[name] === own[name]) expect(data, name).toEqual(own[name].data);
    else {
      changed++;
      for (let i = 0; i < data.length; i++)
        expect(Math.abs((data[i] as number) - (expected[name].data[i] as number))).toBeLessThan(1e-5);
    }
  }
  expect(changed).toBe(modules.size);
});

test("file to file, folder to folder, and in between: one picture, sampled as the adapter says", async () => {
  await fewStepLora(at("lora.safetensors"));
  const lora = at("lora.safetensors");
  const loras = { [lora]: 0.7, [KOHYA]: 0.5 }; // the second on text encoders as well
  const expected = await picture({ loras }, QUICK);
  expect(apart(expected, await picture({}, QUICK))).toBeGreaterThan(2);
  await convertModel(TINY, at("plain.safetensors"));
  for (const [from, to] of [
    [TINY, at("a")],
    [TINY, at("a.safetensors")],
    [at("plain.safetensors"), at("b")],
    [at("plain.safetensors"), at("b.safetensors")],
  ]) {
    expect(await convertModel(from, to, { loras })).toEqual([]);
    expect(apart(await picture({}, QUICK, to), expected), to).toBeLessThanOrEqual(1);
    await using sdxl = await SDXL.load(to, { threads: 1 });
    expect(sdxl.info.defaults).toMatchObject({ steps: 4, guidance: 0, schedule: "trailing" });
  }
  await using file = await SafetensorsFile.open(at("b.safetensors"));
  expect(file.metadata).toMatchObject({ "fewstep.steps": "4" });
});

test("half precision stays half", async () => {
  cpSync(TINY, at("half"), { recursive: true });
  const half = (tensors: Record<string, HostTensor>) =>
    Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, castTensor(t, "float16")]));
  await saveSafetensors(at("half", UNET), half(await unetTensors()));
  await convertModel(at("half"), at("merged"), { loras: { [KOHYA]: 1 } });
  const { tensors } = await loadSafetensors(at("merged", UNET));
  expect(new Set(Object.values(tensors).map(({ dtype }) => dtype))).toEqual(new Set(["float16"]));
});

test("what cannot be done is told, and leaves nothing", async () => {
  const loras = { [KOHYA]: 1 };
  const into = (options: object) => convertModel(TINY, at("x.safetensors"), options);
  await expect(into({ loras, part: "unet" })).rejects.toThrow(
    /^adapters go into a whole model; convert it first, then its unet alone$/,
  );
  await expect(into({ loras: { [at("gone.safetensors")]: 1 } })).rejects.toThrow(/gone.safetensors/);
  await saveSafetensors(at("other.safetensors"), {
    "lora_unet_nowhere.lora_down.weight": (await unetTensors())["conv_in.bias"],
  });
  await expect(into({ loras: { [at("other.safetensors")]: 1 } })).rejects.toThrow(
    /other.safetensors is a LoRA of another network/,
  );
  expect(existsSync(at("x.safetensors"))).toBe(false);
  put("x.safetensors", "old");
  await expect(into({ loras })).rejects.toThrow(/--force replaces it/);
});
