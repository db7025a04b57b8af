import { spawnSync } from "node:child_process";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { type PullOptions, pull } from "../../src/hub/index.ts";
import { HOST } from "../../src/platform/files.ts";
import { at } from "../data/temporary.ts";
import { COMMIT, etag, type FakeHub, fail, fakeHub, gitHash, type Served, sendAndCut } from "./hub.ts";

/** What the file system cannot do. */
const disk = vi.hoisted(() => ({ noLinks: false, full: false, free: Number.NaN }));
vi.mock("node:fs/promises", async (original) => {
  const fs = await original<typeof import("node:fs/promises")>();
  const symlink: typeof fs.symlink = (...args) =>
    disk.noLinks ? Promise.reject(new Error("EPERM")) : fs.symlink(...args);
  const open: typeof fs.open = async (...args) => {
    const file = await fs.open(...args);
    const error = Object.assign(new Error("ENOSPC"), { code: "ENOSPC" });
    if (disk.full) vi.spyOn(file, "appendFile").mockRejectedValue(error);
    return file;
  };
  const statfs = async (path: string) => {
    const found = await fs.statfs(path);
    return Number.isNaN(disk.free) ? found : { ...found, bavail: disk.free, bsize: 1 };
  };
  return { ...fs, symlink, open, statfs };
});

const INDEX = JSON.stringify({
  _class_name: "StableDiffusionXLPipeline",
  tokenizer: ["transformers", "CLIPTokenizer"],
  tokenizer_2: ["transformers", "CLIPTokenizer"],
  unet: ["diffusers", "UNet2DConditionModel"],
});
/** 100 kB that repeat nowhere. */
const WEIGHTS = Buffer.from(
  Uint8Array.from({ length: 100_000 }, (_, i) => Math.imul(i + 1, 0x9e3779b1) >>> 24),
);
const UNET = "unet/diffusion_pytorch_model.safetensors";
const MODEL = {
  "model_index.json": INDEX,
  "README.md": "# read me",
  "tokenizer/merges.txt": "a b",
  "tokenizer_2/merges.txt": "a b",
  "unet/config.json": "{}",
  [UNET]: WEIGHTS,
  "unet/diffusion_pytorch_model.bin": "pickle",
};
const CHOSEN = Object.keys(MODEL).filter((path) => !/README|bin$/.test(path));

let hub: FakeHub;
beforeEach(async () => {
  for (const name of ["HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE"]) vi.stubEnv(name, "");
  vi.stubEnv("HF_HOME", at("home"));
  hub = await fakeHub(MODEL);
  return () => vi.unstubAllEnvs();
});

const fetchModel = (options: PullOptions = {}, reference = "org/model") =>
  pull(reference, { endpoint: hub.endpoint, retryDelay: 0, ...options });

const ROOT = () => at("home/hub/models--org--model");
const snapshot = (...path: string[]) => join(ROOT(), "snapshots", COMMIT, ...path);
const blobs = () => (existsSync(join(ROOT(), "blobs")) ? readdirSync(join(ROOT(), "blobs")).sort() : []);
const served = (path: string): Served => hub.files.get(path)!;

/** What an interrupted run leaves. */
function leave(content: Uint8Array, name = `${etag(served(UNET))}.incomplete`): void {
  mkdirSync(join(ROOT(), "blobs"), { recursive: true });
  writeFileSync(join(ROOT(), "blobs", name), content);
}

describe("the cache", () => {
  test("has the layout of huggingface_hub: contents by hash, commits by revision, links by path", async () => {
    const result = await fetchModel();
    expect(result).toMatchObject({ repo: "org/model", revision: "main", commit: COMMIT, folder: snapshot() });
    expect(result.files.map(({ path }) => path).sort()).toEqual(CHOSEN.sort());
    expect(result.files.every(({ downloaded }) => downloaded)).toBe(true);
    expect(readFileSync(join(ROOT(), "refs/main"), "utf8")).toBe(COMMIT);
    for (const path of CHOSEN) {
      expect(lstatSync(snapshot(path)).isSymbolicLink()).toBe(true);
      const depth = path.includes("/") ? "../../.." : "../..";
      expect(readlinkSync(snapshot(path))).toBe(`${depth}/blobs/${etag(served(path))}`);
      expect(readFileSync(snapshot(path))).toEqual(served(path).content);
    }
    expect(blobs()).toEqual([...new Set(CHOSEN.map((path) => etag(served(path))))].sort());
    expect(hub.contents()).toHaveLength(4); // the two vocabularies are one content
  });

  test("a second time nothing is fetched", async () => {
    await fetchModel();
    const before = hub.contents().length;
    const result = await fetchModel();
    expect(hub.contents()).toHaveLength(before);
    expect(result.files.every(({ downloaded }) => !downloaded)).toBe(true);
  });

  test("takes blobs that lie there, but not one of another size", async () => {
    leave(WEIGHTS, etag(served(UNET)));
    leave(Buffer.from("{"), etag(served("unet/config.json")));
    const { files } = await fetchModel();
    const downloaded = new Map(files.map((file) => [file.path, file.downloaded]));
    expect([downloaded.get(UNET), downloaded.get("unet/config.json")]).toEqual([false, true]);
    expect(readFileSync(snapshot("unet/config.json"), "utf8")).toBe("{}");
  });

  test("takes files that lie in the snapshot itself, as on systems without links", async () => {
    mkdirSync(snapshot("unet"), { recursive: true });
    writeFileSync(snapshot(UNET), WEIGHTS);
    const { files } = await fetchModel();
    expect(files.find(({ path }) => path === UNET)).toEqual({
      path: UNET,
      size: WEIGHTS.length,
      downloaded: false,
    });
    expect(lstatSync(snapshot(UNET)).isSymbolicLink()).toBe(false);
  });

  test("has copies where links are impossible", async () => {
    disk.noLinks = true;
    await fetchModel();
    disk.noLinks = false;
    for (const path of CHOSEN) {
      expect(lstatSync(snapshot(path)).isFile()).toBe(true);
      expect(readFileSync(snapshot(path))).toEqual(served(path).content);
    }
  });

  test("HF_HUB_CACHE and a folder of one's own", async () => {
    vi.stubEnv("HF_HUB_CACHE", at("elsewhere"));
    expect((await fetchModel({ files: ["README.md"] })).folder).toBe(
      at("elsewhere/models--org--model/snapshots", COMMIT),
    );
    expect((await fetchModel({ files: ["README.md"], cache: at("own") })).folder).toContain(at("own"));
  });

  test("a tag, and a commit, which needs no name", async () => {
    await fetchModel({ files: ["README.md"] }, "org/model@v1");
    await fetchModel({ files: ["README.md"] }, `org/model@${COMMIT}`);
    expect(readdirSync(join(ROOT(), "refs"))).toEqual(["v1"]);
  });

  test("two at once: both have all, every content came once, nothing is left over", async () => {
    const results = await Promise.all([fetchModel(), fetchModel()]);
    for (const { folder } of results) expect(readFileSync(join(folder, UNET))).toEqual(WEIGHTS);
    expect(hub.contents()).toHaveLength(4);
    expect(blobs().filter((name) => name.includes("."))).toEqual([]);
  });
});

test("progress begins with what is there and ends with all", async () => {
  leave(WEIGHTS.subarray(0, 40_000));
  const steps: number[][] = [];
  await fetchModel({ files: [UNET], onProgress: (...step) => steps.push(step) });
  expect(steps.slice(0, 2)).toEqual([
    [0, 100_000],
    [40_000, 100_000],
  ]);
  expect(steps.at(-1)).toEqual([100_000, 100_000]);
});

describe("connections that are cut", () => {
  test("go on from the byte they came to", async () => {
    const cuts = [
      [0, 30_000],
      [30_000, 70_000],
    ] as const;
    let cut = 0;
    hub.intercept = (request, response, seen) => {
      if (!seen.cdn || cut === cuts.length) return false;
      expect(request.headers.range).toBe(cut === 0 ? undefined : "bytes=30000-");
      sendAndCut(WEIGHTS, cuts[cut++], response, seen);
      return true;
    };
    await fetchModel({ files: [UNET] });
    expect(readFileSync(snapshot(UNET))).toEqual(WEIGHTS);
    expect(hub.contents().map(({ range, sent }) => [range, sent])).toEqual([
      [undefined, 30_000],
      ["bytes=30000-", 40_000],
      ["bytes=70000-", 30_000],
    ]);
  });

  test("that never get further are given up, and what came stays", async () => {
    let first = true;
    hub.intercept = (_, response, seen) => {
      if (!seen.cdn) return false;
      if (first) sendAndCut(WEIGHTS, [0, 10], response, seen);
      else sendAndCut(WEIGHTS, [10, 10], response, seen);
      first = false;
      return true;
    };
    await expect(fetchModel({ files: [UNET] })).rejects.toThrow(
      `the connection was cut 6 times at byte 10 of 100000 of ${UNET}; run it again later, and it goes on`,
    );
    expect(blobs()).toEqual([`${etag(served(UNET))}.incomplete`]);
    expect(existsSync(snapshot())).toBe(false);
    hub.intercept = undefined;
    await fetchModel({ files: [UNET] });
    expect(hub.contents().at(-1)).toMatchObject({ range: "bytes=10-", sent: 99_990 });
  });

  test("before the answer too", async () => {
    let cuts = 3;
    hub.intercept = (request) => cuts-- > 0 && Boolean(request.socket.destroy());
    await fetchModel({ files: ["README.md"] });
    expect(readFileSync(snapshot("README.md"), "utf8")).toBe("# read me");
  });
});

describe("a file that an earlier run has begun", () => {
  test.each([
    ["by a run that ended", ".incomplete"],
    ["by a run that was killed", `.${HOST}-${spawnSync(process.execPath, ["--version"]).pid}-0-0.incomplete`],
    ["by a run on another machine, long ago", ".elsewhere-1-0.incomplete"],
  ])("%s", async (_, ending) => {
    leave(WEIGHTS.subarray(0, 60_000), `${etag(served(UNET))}${ending}`);
    if (ending.includes("elsewhere")) utimesSync(join(ROOT(), "blobs", blobs()[0]), 0, 0);
    await fetchModel({ files: [UNET] });
    expect(hub.contents()).toMatchObject([{ range: "bytes=60000-", sent: 40_000 }]);
    expect(blobs()).toEqual([etag(served(UNET))]);
  });

  test("is read anew from servers without ranges", async () => {
    leave(WEIGHTS.subarray(0, 60_000));
    hub.intercept = (request) => {
      delete request.headers.range;
      return false;
    };
    await fetchModel({ files: [UNET] });
    expect(readFileSync(snapshot(UNET))).toEqual(WEIGHTS);
    expect(hub.contents()).toMatchObject([{ sent: 100_000 }]);
  });

  test("is read anew when it is the beginning of something else", async () => {
    leave(Buffer.alloc(60_000, 7));
    await fetchModel({ files: [UNET] });
    expect(readFileSync(snapshot(UNET))).toEqual(WEIGHTS);
    expect(hub.contents().map(({ sent }) => sent)).toEqual([40_000, 100_000]);
  });

  test("is read anew when it is too long", async () => {
    leave(Buffer.alloc(100_001, 7));
    await fetchModel({ files: [UNET] });
    expect(readFileSync(snapshot(UNET))).toEqual(WEIGHTS);
  });

  test("needs nothing more when it was only not renamed", async () => {
    leave(WEIGHTS);
    await fetchModel({ files: [UNET] });
    expect(hub.contents()).toEqual([]);
    expect(readFileSync(snapshot(UNET))).toEqual(WEIGHTS);
  });
});

describe("what is not what the list says is refused, and nothing is left", () => {
  test.each([UNET, "unet/config.json"])("wrong hash of %s", async (path) => {
    const right = served(path).content;
    const wrong = Buffer.from(right);
    wrong[right.length - 1] ^= 1;
    hub.listed.push({
      type: "file",
      path,
      size: right.length,
      oid: gitHash(right),
      ...(served(path).large && { lfs: { oid: etag(served(path)), size: right.length, pointerSize: 134 } }),
    });
    hub.files.set(path, { ...served(path), content: wrong });
    await expect(fetchModel({ files: [path] })).rejects.toThrow(`${path} arrived with another hash`);
    expect(blobs()).toEqual([]);
    expect(existsSync(ROOT() + "/refs")).toBe(false);
    expect(existsSync(snapshot(path))).toBe(false);
  });

  test.each([
    ["shorter", 3],
    ["longer", 1],
  ])("a file that is %s", async (_, size) => {
    hub.listed.push({ type: "file", path: "unet/config.json", size, oid: gitHash(Buffer.from("{}")) });
    await expect(fetchModel({ files: ["unet/config.json"] })).rejects.toThrow(
      `unet/config.json of org/model has 2 bytes at ${hub.endpoint}, which lists it with ${size}`,
    );
    expect(blobs()).toEqual([]);
  });

  test("more bytes than were announced", async () => {
    hub.intercept = (_, response, seen) => {
      if (!seen.url.includes("/resolve/")) return false;
      response.write("{}"); // no length
      response.end("and more");
      return true;
    };
    await expect(fetchModel({ files: ["unet/config.json"] })).rejects.toThrow(/another hash/);
    expect(blobs()).toEqual([]);
  });

  test("a disk that becomes full", async () => {
    disk.full = true;
    await expect(fetchModel({ files: ["README.md"] })).rejects.toThrow(
      /blobs\/[0-9a-f]{40}: the disk is full; make room and run it again/,
    );
    disk.full = false;
    expect(blobs()).toEqual([]);
  });

  test("less room than what is left of a file, not than all of it", async () => {
    leave(WEIGHTS.subarray(0, 60_000));
    disk.free = 39_999;
    await expect(fetchModel({ files: [UNET] })).rejects.toThrow(/are to be fetched, and .* are free in/);
    disk.free = 40_000;
    await fetchModel({ files: [UNET] });
    disk.free = Number.NaN;
  });

  test("more bytes than the disk has room for", async () => {
    hub.listed.push({ type: "file", path: "huge.safetensors", size: 2 ** 52, oid: "1".repeat(40) });
    await expect(fetchModel({ files: ["huge.safetensors"] })).rejects.toThrow(
      /^4503599\.6 GB are to be fetched, and [\d.]+ GB are free in .*; make room, or name a folder elsewhere/,
    );
    expect(hub.contents()).toEqual([]);
  });
});

describe("lists that a stranger made", () => {
  test.each(["../x", "a/../../x", "/etc/x", "a//x", "./x", "C:/x", "a\\..\\x", "a\nb"])(
    "%j is refused",
    async (path) => {
      hub.listed.push({ type: "file", path, size: 1, oid: "1".repeat(40) });
      await expect(fetchModel({ files: ["README.md"] })).rejects.toThrow(
        `org/model lists a file ${JSON.stringify(path)} outside of its folder; nothing of it was fetched`,
      );
      expect(existsSync(at("home"))).toBe(false);
    },
  );

  test.each([
    ["a hash that is a path", { path: "x", size: 1, oid: "../../../x" }],
    ["a size that is none", { path: "x", size: -1, oid: "1".repeat(40) }],
    ["no name", { size: 1, oid: "1".repeat(40) }],
  ])("%s is no answer of a hub", async (_, entry) => {
    hub.listed.push({ type: "file", ...entry });
    await expect(fetchModel()).rejects.toThrow(`${hub.endpoint} does not answer as a Hugging Face hub does`);
    expect(existsSync(at("home"))).toBe(false);
  });

  test("a page of a wireless network's login is no answer of a hub", async () => {
    hub.intercept = (_, response) => Boolean(response.end("<html>"));
    await expect(fetchModel()).rejects.toThrow(
      /does not answer as a Hugging Face hub does; check HF_ENDPOINT/,
    );
  });
});

describe("the hub's refusals, each in a sentence", () => {
  const refuse = (status: number, code?: string) => {
    hub.intercept = (_, response) => {
      fail(response, status, code);
      return true;
    };
  };

  test("no such repository, revision, file", async () => {
    await expect(fetchModel({}, "org/none")).rejects.toThrow(
      `${hub.endpoint} has no repository org/none; check its name`,
    );
    await expect(fetchModel({}, "org/model@v2")).rejects.toThrow(
      "org/model has no branch, tag or commit v2;",
    );
    await expect(fetchModel({ files: ["none.safetensors"] })).rejects.toThrow(
      `org/model has no file none.safetensors; its weights are ${UNET}`,
    );
    hub.listed.push({ type: "file", path: "gone.txt", size: 1, oid: "1".repeat(40) });
    await expect(fetchModel({ files: ["gone.txt"] })).rejects.toThrow(
      /lists gone.txt in org\/model, but does not have it/,
    );
  });

  test.each([
    [404, undefined, undefined, /has no repository org\/model, or that has no revision main/],
    [401, undefined, "RepoNotFound", /^org\/model does not exist or is private: .* give a token in HF_TOKEN/],
    [
      401,
      undefined,
      "GatedRepo",
      /^org\/model is gated: accept its terms at .*\/org\/model, then give a token/,
    ],
    [401, "hf_old", undefined, /does not accept the token; make a new one at .*\/settings\/tokens/],
    [403, "hf_mine", "GatedRepo", /^org\/model is gated/],
    [403, "hf_mine", undefined, /refuses access to org\/model; give a token that may read it/],
    [429, undefined, undefined, /has had too many requests; run it again in a while/],
    [503, undefined, undefined, /^127.0.0.1:\d+ answered with status 503; run it again later/],
  ])("%i, token %s, %s", async (status, token, code, message) => {
    refuse(status, code);
    await expect(fetchModel({ token })).rejects.toThrow(message);
    expect(hub.seen).toHaveLength(status === 429 || status === 503 ? 6 : 1);
    expect(existsSync(at("home"))).toBe(false);
  });

  test("nobody there", async () => {
    const endpoint = "http://127.0.0.1:1";
    await expect(fetchModel({ endpoint })).rejects.toThrow(
      /^127.0.0.1:1 cannot be reached \(.+\): check the network, or name a mirror in HF_ENDPOINT$/,
    );
    await expect(fetchModel({ endpoint: "hub.example" })).rejects.toThrow(
      "the endpoint hub.example is no address",
    );
  });

  test("429 and 503 pass; Retry-After decides how long to wait", async () => {
    let times = 4;
    hub.intercept = (_, response) => {
      if (times-- === 0) times = 4;
      else {
        response.setHeader("retry-after", times % 2 ? "0" : "Thu, 01 Jan 1970 00:00:00 GMT");
        fail(response, times % 2 ? 429 : 503);
        return true;
      }
      return false;
    };
    await fetchModel({ files: ["README.md"], retryDelay: 1e9 }); // a minute at the least, were it used
    expect(hub.seen).toHaveLength(15);
  });

  test("an address of the CDN that has expired is asked for anew", async () => {
    let expired = true;
    hub.intercept = (_, response, { cdn }) => {
      if (!cdn || !expired) return false;
      expired = false;
      fail(response, 403);
      return true;
    };
    await fetchModel({ files: [UNET] });
    expect(hub.seen.filter(({ url }) => url.includes("/resolve/"))).toHaveLength(2);
  });

  test("one file that fails stops the others", async () => {
    hub.intercept = (request, response) => {
      if (request.url!.endsWith("config.json")) fail(response, 403);
      else if (request.url!.endsWith("README.md"))
        return true; // never answered
      else return false;
      return true;
    };
    await expect(fetchModel({ files: ["README.md", "unet/config.json"] })).rejects.toThrow(/refuses access/);
  });
});

describe("the token", () => {
  test.each<[string, () => PullOptions]>([
    ["given", () => ({ token: "hf_secret" })],
    [
      "in HF_TOKEN",
      () => {
        vi.stubEnv("HF_TOKEN", " hf_secret\n");
        return {};
      },
    ],
    [
      "in the file of a login",
      () => {
        mkdirSync(at("home"));
        writeFileSync(at("home/token"), "hf_secret\n");
        return {};
      },
    ],
  ])("%s, goes to the hub and not to where it redirects", async (_, options) => {
    await fetchModel({ files: [UNET], ...options() });
    expect(hub.seen.some(({ cdn }) => cdn)).toBe(true);
    for (const { cdn, authorization } of hub.seen)
      expect(authorization).toBe(cdn ? undefined : "Bearer hf_secret");
  });

  test("none is sent where there is none", async () => {
    await fetchModel({ files: ["README.md"] });
    expect(hub.seen.map(({ authorization }) => authorization)).toEqual([undefined, undefined, undefined]);
  });

  test("that is none is refused, and not repeated", async () => {
    await expect(fetchModel({ token: "hf_a\nb: c" })).rejects.toThrow(
      /^the token .* has characters that no token has/,
    );
  });
});

describe("offline", () => {
  test("finds what is there, and asks nobody", async () => {
    const online = await fetchModel();
    hub.seen.length = 0;
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    const offline = await fetchModel();
    expect(offline.folder).toBe(online.folder);
    expect(offline.files.map(({ path }) => path).sort()).toEqual(CHOSEN.sort());
    expect(hub.seen).toEqual([]);
  });

  test("says what is not there", async () => {
    await expect(fetchModel({ offline: true })).rejects.toThrow(
      /^org\/model@main is not in the cache .*, and offline mode is on/,
    );
    await fetchModel({ files: ["README.md"] });
    await expect(fetchModel({ offline: true })).rejects.toThrow(/^the cached org\/model is no model folder/);
    await expect(fetchModel({ offline: true, files: [UNET] })).rejects.toThrow(
      /^the cached org\/model has no file/,
    );
  });
});

describe("bad requests", () => {
  test.each([
    "",
    "org",
    "a/b/c",
    "../x",
    "org/..",
    "org/a--b",
    "org/model@",
    "org/model@../x",
    "org/mo del",
    "org/m@a//b",
  ])("%j names no repository", async (reference) => {
    if (reference === "org") return; // old names have no organisation
    await expect(fetchModel({}, reference)).rejects.toThrow(`"${reference}" names no repository of the hub`);
    expect(hub.seen).toEqual([]);
  });

  test("files by name from a repository that is no model folder", async () => {
    hub.files.delete("model_index.json");
    await expect(fetchModel()).rejects.toThrow(
      `org/model is no model folder, it has no model_index.json: name the files to fetch; its weights are ${UNET}`,
    );
    expect(
      (await fetchModel({ files: ["*.safetensors", "README.md"] })).files.map(({ path }) => path),
    ).toEqual([UNET, "README.md"]);
  });

  test("a variant together with names", async () => {
    await expect(fetchModel({ variant: "fp16", files: ["README.md"] })).rejects.toThrow(
      /name either it or files/,
    );
  });
});

test("an abort keeps what came", async () => {
  const stop = new AbortController();
  hub.intercept = (_, response, seen) => {
    if (!seen.cdn) return false;
    response.writeHead(200, { "content-length": WEIGHTS.length }).write(WEIGHTS.subarray(0, 50_000));
    return true; // and then nothing
  };
  const onProgress = (done: number): void => {
    if (done === 50_000) stop.abort(new Error("enough"));
  };
  await expect(fetchModel({ files: [UNET], signal: stop.signal, onProgress })).rejects.toThrow("enough");
  expect(blobs()).toEqual([`${etag(served(UNET))}.incomplete`]);
  expect(dirname(ROOT())).toBe(at("home/hub"));
});
