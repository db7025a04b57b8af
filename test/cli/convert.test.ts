import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { loadSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { goldenPath } from "../parity/golden.ts";
import { TINY, unetTensors } from "../pipelines/tiny.ts";
import { expectRefusal, fewstep } from "./run.ts";

test("a folder becomes a file, the file a folder", async () => {
  const there = await fewstep(["convert", TINY, at("x.safetensors"), "--json"]);
  expect({ ...there, stdout: JSON.parse(there.stdout) }).toEqual({
    code: 0,
    stdout: { file: at("x.safetensors"), warnings: [] },
    stderr: "",
  });
  const back = await fewstep(["convert", at("x.safetensors"), at("folder")]);
  expect(back).toEqual({ code: 0, stdout: `${at("folder")}\n`, stderr: "" });
  expect(existsSync(at("folder/unet/diffusion_pytorch_model.safetensors"))).toBe(true);
  const unet = await fewstep(["convert", at("x.safetensors"), at("u.safetensors"), "--only", "unet"]);
  expect(unet.code).toBe(0);
});

test("adapters become part of a folder's weights", async () => {
  const lora = ["--lora", `${goldenPath("loras/kohya.safetensors")}:0.5`];
  const made = await fewstep(["convert", TINY, at("merged"), ...lora]);
  expect(made).toEqual({ code: 0, stdout: `${at("merged")}\n`, stderr: "" });
  const { tensors } = await loadSafetensors(at("merged/unet/diffusion_pytorch_model.safetensors"));
  expect(tensors["conv_in.bias"]).toEqual((await unetTensors())["conv_in.bias"]);
  expectRefusal(
    await fewstep(["convert", TINY, at("x.safetensors"), "--only", "unet", ...lora]),
    /adapters go into a whole model/,
  );
});

test("mistakes are told in one sentence", async () => {
  put("x.safetensors", "old");
  expectRefusal(
    await fewstep(["convert", TINY, at("x.safetensors")]),
    /a file of that name is there; --force/,
  );
  expectRefusal(await fewstep(["convert", at("gone"), at("y.safetensors")]), /gone: no such file or folder/);
  expectRefusal(
    await fewstep(["convert", at("x.safetensors"), at("y")]),
    /x.safetensors: not a safetensors file/,
  );
  expectRefusal(await fewstep(["convert", TINY, at("y"), "--only", "text"]), /Allowed choices are unet, vae/);
});
