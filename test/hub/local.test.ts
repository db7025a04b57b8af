import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { blobsOf, localPath, pull, repoOf } from "../../src/hub/index.ts";
import { SDXL, samplingMetadata } from "../../src/index.node.ts";
import { loadSafetensors, saveSafetensors } from "../../src/weights/index.ts";
import { at, put } from "../data/temporary.ts";
import { COMMIT, fakeHub } from "./hub.ts";

const TINY = fileURLToPath(new URL("../parity/goldens/tiny-sdxl", import.meta.url));
const SNAPSHOT = `hub/models--org--model/snapshots/${COMMIT}`;

beforeEach(() => {
  vi.stubEnv("HF_HUB_CACHE", at("hub"));
  for (const name of ["HF_TOKEN", "HF_HUB_OFFLINE"]) vi.stubEnv(name, "");
  return () => vi.unstubAllEnvs();
});

describe("localPath", () => {
  beforeEach(() => {
    put(`${SNAPSHOT}/unet.safetensors`, "weights");
    put("hub/models--org--model/refs/main", COMMIT);
  });

  test("finds models and their files in the cache", () => {
    expect(localPath("org/model")).toBe(at(SNAPSHOT));
    expect(localPath("org/model@main")).toBe(at(SNAPSHOT));
    expect(localPath(`org/model@${COMMIT}`)).toBe(at(SNAPSHOT));
    expect(localPath("org/model/unet.safetensors")).toBe(at(SNAPSHOT, "unet.safetensors"));
  });

  test("finds revisions with slashes", () => {
    put("hub/models--org--model/refs/refs/pr/1", COMMIT);
    put("hub/models--org--model/refs/feature/a", COMMIT);
    for (const revision of ["refs/pr/1", "feature/a"]) {
      expect(localPath(`org/model@${revision}`)).toBe(at(SNAPSHOT));
      expect(localPath(`org/model@${revision}/unet.safetensors`)).toBe(at(SNAPSHOT, "unet.safetensors"));
    }
  });

  test.each([
    "/nowhere/model",
    "./org/model",
    "../org/model",
    "model",
    "org/x.safetensors",
    "a/b/c",
    "C:\\org\\model",
  ])("%s stays what it is", (path) => expect(localPath(path)).toBe(path));

  test("a path that exists wins", () => {
    put(`hub/models--src--hub/snapshots/${COMMIT}/x`, "");
    put("hub/models--src--hub/refs/main", COMMIT);
    expect(localPath("src/hub")).toBe("src/hub"); // of this repository
  });

  test.each([
    ["org/other", "run: fewstep pull org/other"],
    ["org/model@v2", "run: fewstep pull org/model@v2"],
    ["org/model@refs/pr/2", "run: fewstep pull org/model@refs/pr/2"],
    ["org/model@refs/pr/2/unet/a.safetensors", "run: fewstep pull org/model@refs/pr/2 unet/a.safetensors"],
    ["org/model@v2/unet/a.safetensors", "run: fewstep pull org/model@v2 unet/a.safetensors"],
    ["org/model/lora.safetensors", "run: fewstep pull org/model lora.safetensors"],
  ])("%s is not there", (name, advice) => {
    expect(() => localPath(name)).toThrow(
      `${name}: no such file or folder, and the cache of the hub has none`,
    );
    expect(() => localPath(name)).toThrow(advice);
  });

  test("a damaged ref is none", () => {
    put("hub/models--org--model/refs/main", "../../../elsewhere");
    expect(() => localPath("org/model")).toThrow("run: fewstep pull org/model");
  });

  test("a snapshot knows its repository", () => {
    expect(repoOf(at(SNAPSHOT))).toBe("org/model");
    expect(repoOf(at("hub"))).toBeUndefined();
    expect(blobsOf(at(SNAPSHOT))).toBeUndefined();
    mkdirSync(at("hub/models--org--model/blobs"));
    expect(blobsOf(at(SNAPSHOT))).toBe(at("hub/models--org--model/blobs"));
  });
});

test("a model that was pulled is loaded by its name, with the few-step weights that it brings along", async () => {
  const files = readdirSync(TINY, { recursive: true, encoding: "utf8", withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
  const model = Object.fromEntries(files.map((path) => [relative(TINY, path), readFileSync(path)]));
  const { tensors } = await loadSafetensors(join(TINY, "unet/diffusion_pytorch_model.safetensors"));
  await saveSafetensors(at("two.safetensors"), tensors, samplingMetadata({ steps: 2 }));
  const index = JSON.parse(String(model["model_index.json"]));
  index.fewstep = { steps: 3, lightning: { default: 2, files: { 2: "two.safetensors" } } };
  const hub = await fakeHub({
    ...model,
    "model_index.json": JSON.stringify(index),
    "two.safetensors": readFileSync(at("two.safetensors")),
  });
  await expect(SDXL.load("org/model")).rejects.toThrow("run: fewstep pull org/model");
  await pull("org/model", { endpoint: hub.endpoint });
  await using sdxl = await SDXL.load("org/model", { threads: 1, steps: 3 });
  const [picture] = await sdxl.textToImage("a red apple", { steps: 1, seed: 1 });
  await using same = await SDXL.load(TINY, { threads: 1 });
  const [expected] = await same.textToImage("a red apple", {
    steps: 1,
    seed: 1,
    guidance: sdxl.info.defaults.guidance,
  });
  expect(picture.data).toEqual(expected.data);
  expect(picture.settings.model).toBe("org/model");
  await using few = await SDXL.load("org/model", { threads: 1 });
  expect(few.info.distilled).toBe(2);
  await using named = await SDXL.load("org/model", { threads: 1, unet: "org/model/two.safetensors" });
  expect(named.info.distilled).toBe(2);
});
