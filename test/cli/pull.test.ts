/** @file `fewstep pull`, as a process of its own. */

import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { at, put } from "../data/temporary.ts";
import { COMMIT, etag, type FakeHub, fail, fakeHub, fakeProxy } from "../hub/hub.ts";
import { expectRefusal, fewstep, type Result } from "./run.ts";

const WEIGHTS = Buffer.alloc(50_000, "weights");
const BLOBS = "home/hub/models--org--model/blobs";

let hub: FakeHub;
beforeEach(async () => {
  hub = await fakeHub({ "a.safetensors": WEIGHTS, "b/config.json": "{}" });
});

function pull(args: readonly string[], more: Parameters<typeof fewstep>[1] = {}): Promise<Result> {
  const env = {
    HF_HOME: at("home"),
    HF_ENDPOINT: hub.endpoint,
    HF_TOKEN: "",
    HF_HUB_CACHE: "",
    HF_HUB_OFFLINE: "",
    ...more.env,
  };
  return fewstep(["pull", ...args], { ...more, env });
}

const snapshot = () => at("home/hub/models--org--model/snapshots", COMMIT);

test("prints the folder, or all of it as JSON; a second time and offline nothing is fetched", async () => {
  expect(await pull(["org/model", "*.safetensors"])).toEqual({
    code: 0,
    stdout: `${snapshot()}\n`,
    stderr: "",
  });
  expect(readFileSync(join(snapshot(), "a.safetensors"))).toEqual(WEIGHTS);
  const fetched = hub.contents().length;
  const { code, stdout } = await pull(["org/model@main", "a.safetensors", "--json"]);
  const files = [{ path: "a.safetensors", size: 50_000, downloaded: false }];
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toEqual({
    repo: "org/model",
    revision: "main",
    commit: COMMIT,
    folder: snapshot(),
    files,
  });
  expect(hub.contents()).toHaveLength(fetched);
  const before = hub.seen.length;
  const offline = await pull(["org/model", "a.safetensors", "--offline"]);
  expect(offline.stdout).toBe(`${snapshot()}\n`);
  expect(hub.seen).toHaveLength(before);
});

describe("through a proxy", () => {
  test("that takes plain http: to the hub and its CDN, with name and password, but to hosts in NO_PROXY", async () => {
    const proxy = await fakeProxy("me:secret");
    const HTTP_PROXY = proxy.address.replace("//", "//me:secret@");
    expect(await pull(["org/model"], { env: { HTTP_PROXY } })).toMatchObject({ code: 2 }); // no model folder
    expect((await pull(["org/model", "*"], { env: { HTTP_PROXY } })).code).toBe(0);
    expect(readFileSync(join(snapshot(), "a.safetensors"))).toEqual(WEIGHTS);
    expect(proxy.forwarded.length).toBe(hub.seen.length);
    const before = hub.seen.length;
    const env = { http_proxy: HTTP_PROXY, NO_PROXY: "example.org,127.0.0.1" };
    expect((await pull(["org/model", "*"], { env })).code).toBe(0);
    expect(hub.seen.length).toBeGreaterThan(before);
    expect(proxy.forwarded.length).toBe(before);
  });

  test("by a tunnel for https: the proxy is asked for host and port", async () => {
    const proxy = await fakeProxy();
    const env = { HF_ENDPOINT: "https://hub.invalid", https_proxy: proxy.address };
    const result = await pull(["org/model"], { env });
    expectRefusal(
      result,
      /^fewstep: the proxy does not connect to this host \(status 403\): check https_proxy/,
    );
    expect(proxy.tunnels).toEqual(["hub.invalid:443"]);
  });

  test.each<[string, Record<string, string>, RegExp]>([
    [
      "another protocol",
      { HTTPS_PROXY: "socks5://me:secret@host:1080" },
      /HTTPS_PROXY is "socks5:\/\/host:1080"; give/,
    ],
    ["no address", { HTTP_PROXY: "a b" }, /HTTP_PROXY is "a b"; give the address of a proxy, such as http:/],
    ["nobody there", { HTTP_PROXY: "127.0.0.1:1" }, /\(ECONNREFUSED\): check the network and HTTP_PROXY, or/],
  ])("%s: one sentence", async (_, env, message) => {
    expectRefusal(await pull(["org/model"], { env }), message);
    expect(hub.seen).toEqual([]);
  });

  test("that wants to know who asks: plain http and tunnels", async () => {
    const proxy = await fakeProxy("me:secret");
    const wanted =
      /the proxy wants to know who asks \(status 407\): give it as http:\/\/user:password@host:port in HTTP/;
    expectRefusal(await pull(["org/model"], { env: { HTTP_PROXY: proxy.address } }), wanted);
    const env = { HF_ENDPOINT: "https://hub.invalid", HTTPS_PROXY: proxy.address };
    expectRefusal(await pull(["org/model"], { env }), wanted);
  });
});

test("--endpoint goes before HF_ENDPOINT, a token in the environment goes along", async () => {
  const env = { HF_ENDPOINT: "http://127.0.0.1:1", HF_TOKEN: "hf_mine" };
  const { code } = await pull(["org/model", "b/*", "--endpoint", `${hub.endpoint}/`], { env });
  expect(code).toBe(0);
  expect(new Set(hub.seen.map(({ authorization }) => authorization))).toEqual(new Set(["Bearer hf_mine"]));
});

describe("mistakes: one sentence, exit code 2", () => {
  test.each<[string, string[], string | RegExp]>([
    ["no repository", [], /missing required argument 'repo'/],
    ["a name that is none", ["../model"], '"../model" names no repository of the hub'],
    [
      "an unknown option",
      ["org/model", "--ofline"],
      /unknown option '--ofline' \(Did you mean --offline\?\)/,
    ],
    ["parallel", ["org/model", "--parallel", "0"], /--parallel.*from 1 to 64/],
    ["an address that is none", ["org/model", "--endpoint", "hub"], /the endpoint hub is no address/],
    [
      "nothing in the cache",
      ["org/model", "--offline"],
      /org\/model@main is not in the cache .* offline mode is on/,
    ],
    [
      "no model folder",
      ["org/model"],
      /no model_index.json: name the files to fetch; its weights are a.safetensors/,
    ],
    ["a file that is not there", ["org/model", "c.bin"], /org\/model has no file c.bin/],
    ["a repository that is not there", ["org/none"], /has no repository org\/none/],
  ])("%s", async (_, args, message) => {
    expectRefusal(await pull(args), message);
    expect(existsSync(at("home"))).toBe(false);
  });

  test("a model that was not pulled", async () => {
    const env = { HF_HUB_CACHE: at("hub") };
    expectRefusal(
      await fewstep(["generate", "an apple", "--model", "org/model"], { env }),
      /^fewstep: org\/model: no such file or folder, and the cache of the hub has none .* run: fewstep pull org\/model$/m,
    );
  });

  test("no access", async () => {
    hub.intercept = (_, response) => {
      fail(response, 401, "RepoNotFound");
      return true;
    };
    expectRefusal(
      await pull(["org/model"]),
      /org\/model does not exist or is private: .* give a token in HF_TOKEN/,
    );
  });

  test("a folder that is a file", async () => {
    put("home", "");
    expectRefusal(await pull(["org/model", "a.safetensors"]), /part of the path is a file|is there/);
  });
});

test("Ctrl-C keeps what came, and the next run goes on from there", async () => {
  const half = WEIGHTS.length / 2;
  hub.intercept = (_, response, seen) => {
    if (!seen.cdn || seen.range) return false;
    response.writeHead(200, { "content-length": WEIGHTS.length }).write(WEIGHTS.subarray(0, half));
    return true; // and then nothing
  };
  const arrived = (): boolean =>
    existsSync(at(BLOBS)) && readdirSync(at(BLOBS)).some((name) => statSync(at(BLOBS, name)).size === half);
  const interrupted = await pull(["org/model", "a.safetensors"], {
    started: (child) => {
      const look = setInterval(() => {
        if (!arrived()) return;
        clearInterval(look);
        child.kill("SIGINT");
      }, 20);
      child.on("exit", () => clearInterval(look));
    },
  });
  expect(interrupted).toEqual({
    code: 130,
    stdout: "",
    stderr: "fewstep: interrupted; run the same command again to go on from here\n",
  });
  const hash = etag(hub.files.get("a.safetensors")!);
  expect(readdirSync(at(BLOBS))).toEqual([`${hash}.incomplete`]);
  expect(existsSync(dirname(snapshot()))).toBe(false);

  expect((await pull(["org/model", "a.safetensors"])).code).toBe(0);
  expect(hub.contents()).toMatchObject([{ range: `bytes=${half}-`, sent: half }]);
  expect(readFileSync(join(snapshot(), "a.safetensors"))).toEqual(WEIGHTS);
});
