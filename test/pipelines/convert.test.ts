/** @file Layouts: tensors come back with all their bits, and nothing is replaced unasked. */

import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { readComponents } from "../../src/pipelines/components.ts";
import { convertModel, readJson, SDXL, samplingMetadata, saveCheckpoint } from "../../src/pipelines/index.ts";
import { castTensor, floats, type HostTensor } from "../../src/tensor/index.ts";
import {
  loadSafetensors,
  SafetensorsFile,
  saveLora,
  saveSafetensors,
  writeSafetensors,
} from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { checkpointTensors, inHalf, type Networks, smallNetworks, sourcesOf, writeSmall } from "./small.ts";
import { picture, randomLora, TINY, UNET, unetTensors } from "./tiny.ts";

const few = { steps: 2, spacing: "trailing", guidance: 1, predictionType: "sample" } as const;
const PARTS = [
  ["unet", "diffusion_pytorch_model"],
  ["vae", "diffusion_pytorch_model"],
  ["text_encoder", "model"],
  ["text_encoder_2", "model"],
] as const;

/** A tensor with its bits in short. */
function digest({ dtype, shape, data }: HostTensor) {
  const { buffer, byteOffset, byteLength } = data;
  const bits = createHash("sha256")
    .update(new Uint8Array(buffer, byteOffset, byteLength))
    .digest("hex");
  return { dtype, shape, bits };
}

function digests(tensors: Readonly<Record<string, HostTensor>>) {
  return Object.fromEntries(Object.entries(tensors).map(([key, t]) => [key, digest(t)]));
}

/** The tensors of a file, without those that no network needs. */
async function tensorsOf(path: string) {
  const { tensors } = await loadSafetensors(path);
  const unused = /position_ids$|logit_scale$|^denoiser\./;
  return digests(Object.fromEntries(Object.entries(tensors).filter(([key]) => !unused.test(key))));
}

describe("a model folder of its own kind", () => {
  test("through a file and back: every tensor, config and picture", async () => {
    await convertModel(TINY, at("one.safetensors"));
    await convertModel(at("one.safetensors"), at("two"));
    for (const [part, stem] of PARTS) {
      const file = join(part, `${stem}.safetensors`);
      expect(await tensorsOf(at("two", file)), part).toEqual(await tensorsOf(join(TINY, file)));
      const [before, after] = [
        await readJson(join(TINY, part, "config.json")),
        await readJson(at("two", part, "config.json")),
      ];
      expect(after).toMatchObject(before);
    }
    await convertModel(at("two"), at("three.safetensors"));
    expect(await tensorsOf(at("three.safetensors"))).toEqual(await tensorsOf(at("one.safetensors")));
    const options = { steps: 2, guidance: 4, negativePrompt: "blue light!", seed: 3 };
    const expected = await picture({}, options);
    expect(await picture({}, options, at("two"))).toEqual(expected);
    expect(await picture({}, options, at("three.safetensors"))).toEqual(expected);
  });

  test("what its file says of sampling stays", async () => {
    await saveCheckpoint(at("few.safetensors"), TINY, undefined, { settings: few });
    await convertModel(at("few.safetensors"), at("folder"));
    const scheduler = await readJson(at("folder/scheduler/scheduler_config.json"));
    expect(scheduler).toMatchObject({ timestep_spacing: "trailing", prediction_type: "sample" });
    expect(await picture({}, {}, at("folder"))).toEqual(await picture({}, {}, at("few.safetensors")));
    await convertModel(at("folder"), at("back.safetensors"));
    await using file = await SafetensorsFile.open(at("back.safetensors"));
    expect(file.metadata).toMatchObject(samplingMetadata(few));
  });
});

describe("a checkpoint of another program", () => {
  let networks: Networks;
  beforeAll(() => {
    const { unet, ...rest } = smallNetworks();
    networks = { unet: inHalf(unet), ...rest }; // each part in a precision of its own
  });

  test("through a folder and back: bits, precisions, and no configs that it needs none of", async () => {
    await writeSmall(at("small.safetensors"), networks);
    await convertModel(at("small.safetensors"), at("folder"));
    const unet = await tensorsOf(at("folder/unet/diffusion_pytorch_model.safetensors"));
    expect(unet).toEqual(digests(Object.fromEntries(networks.unet)));
    rmSync(at("folder/tokenizer"), { recursive: true }); // CLIP's own takes its place
    await convertModel(at("folder"), at("back.safetensors"));
    expect(await tensorsOf(at("back.safetensors"))).toEqual(await tensorsOf(at("small.safetensors")));
    await using file = await SafetensorsFile.open(at("back.safetensors"));
    expect(file.metadata).toEqual({ format: "pt" });
    expect(file.entries.has("conditioner.embedders.1.model.logit_scale")).toBe(true);
  });

  test("with the marks of a UNet that predicts v", async () => {
    const tensors = checkpointTensors(networks);
    for (const mark of ["v_pred", "ztsnr"])
      tensors.set(mark, sourcesOf(new Map([["", floats([0])]])).get("")!);
    await writeSafetensors(at("v.safetensors"), tensors);
    await convertModel(at("v.safetensors"), at("folder"));
    const scheduler = await readJson(at("folder/scheduler/scheduler_config.json"));
    const marked = { prediction_type: "v_prediction", rescale_betas_zero_snr: true };
    expect(scheduler).toMatchObject(marked);

    await convertModel(at("folder"), at("back.safetensors"));
    expect(await tensorsOf(at("back.safetensors"))).toEqual(await tensorsOf(at("v.safetensors")));
    await convertModel(at("v.safetensors"), at("u1.safetensors"), { part: "unet" });
    await convertModel(at("folder"), at("u2.safetensors"), { part: "unet" });
    await convertModel(at("u1.safetensors"), at("u3.safetensors"));
    await convertModel(at("u3.safetensors"), at("u4.safetensors"));
    const other = { ...scheduler, prediction_type: "epsilon", rescale_betas_zero_snr: false };
    put("folder/scheduler/scheduler_config.json", JSON.stringify(other));
    for (const name of ["back", "u1", "u2", "u3", "u4"]) {
      const { scheduler, sampling } = await readComponents(at("folder"), { unet: at(`${name}.safetensors`) });
      expect(scheduler, name).toMatchObject(marked);
      expect(sampling, name).toEqual({ predictionType: "v_prediction" });
    }
  });

  test.each<[string, (n: Partial<Networks>) => void, RegExp]>([
    [
      "no text encoders",
      (n) => {
        n.text_encoder = undefined;
        n.text_encoder_2 = undefined;
      },
      /x.safetensors is a checkpoint without first text encoder, second text encoder; give it as the UNet of a whole model$/,
    ],
    [
      "no VAE",
      (n) => (n.vae = undefined),
      /x.safetensors is a checkpoint without VAE; give it as the UNet of a whole/,
    ],
    [
      "a vocabulary of its own",
      (n) => n.text_encoder!.set("text_model.embeddings.token_embedding.weight", floats([50, 64])),
      /and is no plain SDXL: a text encoder knows 50 tokens, CLIP's vocabulary has 49408; give a model folder/,
    ],
  ])("refused: %s", async (_, change, message) => {
    const some: Partial<Networks> = { ...networks, text_encoder: new Map(networks.text_encoder) };
    change(some);
    const there = Object.fromEntries(Object.entries(some).filter(([, tensors]) => tensors));
    await writeSafetensors(at("x.safetensors"), checkpointTensors(there));
    await expect(SDXL.load(at("x.safetensors"))).rejects.toThrow(message);
  });
});

describe("a network alone", () => {
  test("the UNet of a folder, a checkpoint and a file: same tensors, same pictures", async () => {
    const own = await unetTensors();
    await saveSafetensors(at("own.safetensors"), own, samplingMetadata(few));
    await convertModel(at("own.safetensors"), at("theirs.safetensors"));
    await convertModel(at("theirs.safetensors"), at("ours.safetensors"));
    const { tensors, metadata } = await loadSafetensors(at("ours.safetensors"));
    expect(digests(tensors)).toEqual(digests(own));
    expect(metadata).toEqual({ format: "pt", ...samplingMetadata(few) });
    const theirs = await loadSafetensors(at("theirs.safetensors"));
    expect(Object.keys(theirs.tensors)).toContain("model.diffusion_model.input_blocks.0.0.weight");
    expect(await picture({ unet: at("theirs.safetensors") }, {})).toEqual(
      await picture({ unet: at("own.safetensors") }, {}),
    );
    // Without the prefix, as some save it.
    const bare = Object.entries(theirs.tensors).map(
      ([key, t]) => [key.replace("model.diffusion_model.", ""), t] as const,
    );
    await saveSafetensors(at("bare.safetensors"), Object.fromEntries(bare), samplingMetadata(few));
    expect(await picture({ unet: at("bare.safetensors") }, {})).toEqual(
      await picture({ unet: at("own.safetensors") }, {}),
    );
    await convertModel(TINY, at("all.safetensors"));
    await convertModel(at("all.safetensors"), at("part.safetensors"), { part: "unet" });
    expect(await tensorsOf(at("part.safetensors"))).toEqual(digests(own));
    await convertModel(TINY, at("part2.safetensors"), { part: "unet" });
    expect(await tensorsOf(at("part2.safetensors"))).toEqual(digests(theirs.tensors));
  });

  test("the VAE, both ways", async () => {
    const file = join(TINY, "vae/diffusion_pytorch_model.safetensors");
    await convertModel(file, at("theirs.safetensors"));
    await convertModel(at("theirs.safetensors"), at("ours.safetensors"));
    expect(await tensorsOf(at("ours.safetensors"))).toEqual(await tensorsOf(file));
    await convertModel(TINY, at("folder.safetensors"), { part: "vae" });
    expect(readFileSync(at("folder.safetensors"))).toEqual(readFileSync(at("theirs.safetensors")));
    await saveCheckpoint(at("all.safetensors"), TINY);
    await convertModel(at("all.safetensors"), at("part.safetensors"), { part: "vae" });
    expect(await tensorsOf(at("part.safetensors"))).toEqual(await tensorsOf(file));
  });

  test("refused: a tensor that has no place", async () => {
    const own = await unetTensors();
    await saveSafetensors(at("x.safetensors"), { ...own, "mid_block.extra.weight": floats([1]) });
    const message = /x.safetensors: mid_block.extra.weight has no place in a single-file checkpoint$/;
    await expect(convertModel(at("x.safetensors"), at("y.safetensors"))).rejects.toThrow(message);
    await convertModel(UNET, at("z.safetensors"));
    const { tensors } = await loadSafetensors(at("z.safetensors"));
    await saveSafetensors(at("z.safetensors"), { ...tensors, "model.diffusion_model.x": floats([1]) });
    await expect(convertModel(at("z.safetensors"), at("y.safetensors"))).rejects.toThrow(
      /z.safetensors does not fit: 1 left over: x$/,
    );
    expect(existsSync(at("y.safetensors"))).toBe(false);
  });
});

describe("what is there stays", () => {
  test("a file and a folder, unless asked otherwise", async () => {
    put("x.safetensors", "old");
    await expect(convertModel(TINY, at("x.safetensors"))).rejects.toThrow(
      /x.safetensors: a file of that name is there; --force replaces it$/,
    );
    expect(readFileSync(at("x.safetensors"), "utf8")).toBe("old");
    await convertModel(TINY, at("x.safetensors"), { force: true });
    cpSync(TINY, at("model"), { recursive: true });
    put("model/notes.txt", "mine");
    await expect(convertModel(at("x.safetensors"), at("model"))).rejects.toThrow(
      /model: a folder of that name is there/,
    );
    await convertModel(at("x.safetensors"), at("model"), { force: true });
    expect(existsSync(at("model/notes.txt"))).toBe(false);
    mkdirSync(at("empty"));
    await convertModel(at("x.safetensors"), at("empty"));
    expect(readdirSync(at(".")).sort()).toEqual(["empty", "model", "x.safetensors"]);
    put("other/notes.txt", "mine");
    await expect(convertModel(at("x.safetensors"), at("other"), { force: true })).rejects.toThrow(
      /other is no model folder, so it is not replaced; give another name$/,
    );
    await expect(convertModel(TINY, at("x.safetensors/y.safetensors"))).rejects.toThrow();
  });

  test("a file that cannot be converted leaves nothing, and the old folder whole", async () => {
    await convertModel(TINY, at("x.safetensors"));
    const { tensors, metadata } = await loadSafetensors(at("x.safetensors"));
    const { "model.diffusion_model.out.2.bias": _, ...less } = tensors;
    await saveSafetensors(at("x.safetensors"), less, metadata);
    cpSync(TINY, at("model"), { recursive: true });
    for (const to of ["new", "model"])
      await expect(convertModel(at("x.safetensors"), at(to), { force: true })).rejects.toThrow(
        /x.safetensors does not fit: 1 missing: conv_out.bias$/,
      );
    expect(readdirSync(at(".")).sort()).toEqual(["model", "x.safetensors"]);
    expect(readdirSync(at("model"))).toEqual(readdirSync(TINY));
  });
});

describe("refused in one sentence", () => {
  test.each<[string, () => unknown, [string, string, { part?: "unet" }?], RegExp]>([
    [
      "a folder into a folder",
      () => {},
      ["TINY", "y"],
      /is a model folder already; give a name that ends in .safetensors$/,
    ],
    [
      "a network into a folder",
      () => {},
      ["TINY", "y", { part: "unet" }],
      /y: one network becomes a file; end its name/,
    ],
    [
      "a LoRA",
      async () => saveLora(at("x.safetensors"), randomLora(await unetTensors())),
      ["x.safetensors", "y.safetensors"],
      /x.safetensors is a LoRA, not a UNet with diffusers' names; give it as a LoRA$/,
    ],
    [
      "SD 1.5",
      () =>
        saveSafetensors(at("x.safetensors"), {
          "model.diffusion_model.input_blocks.0.0.weight": floats([8, 4, 3, 3]),
          "model.diffusion_model.out.2.weight": floats([4, 8, 3, 3]),
          "model.diffusion_model.x.attn2.to_k.weight": castTensor(floats([8, 768]), "float16"),
          "cond_stage_model.x": floats([1]),
        }),
      ["x.safetensors", "y"],
      /x.safetensors is a single-file checkpoint of SD 1.x; fewstep runs models of the SDXL family$/,
    ],
    ["nothing", () => {}, ["gone", "y.safetensors"], /no such file/],
  ])("%s", async (_, make, [from, to, options], message) => {
    await make();
    await expect(convertModel(from === "TINY" ? TINY : at(from), at(to), options)).rejects.toThrow(message);
  });
});
