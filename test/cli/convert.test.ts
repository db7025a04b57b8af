import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { at, put } from "../data/temporary.ts";
import { TINY } from "../pipelines/tiny.ts";
import { expectRefusal, fewstep } from "./run.ts";

test("a folder becomes a file, the file a folder", async () => {
  const there = await fewstep(["convert", TINY, at("x.safetensors"), "--json"]);
  expect({ ...there, stdout: JSON.parse(there.stdout) }).toEqual({
    code: 0,
    stdout: { file: at("x.safetensors") },
    stderr: "",
  });
  const back = await fewstep(["convert", at("x.safetensors"), at("folder")]);
  expect(back).toEqual({ code: 0, stdout: `${at("folder")}\n`, stderr: "" });
  expect(existsSync(at("folder/unet/diffusion_pytorch_model.safetensors"))).toBe(true);
  const unet = await fewstep(["convert", at("x.safetensors"), at("u.safetensors"), "--only", "unet"]);
  expect(unet.code).toBe(0);
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
