/**
 * @file The README's contact sheet: twenty prompts, one picture each, all with seed 1 and the bundled model's own
 * settings: `npx tsx scripts/showcase.ts [sheet.png]`. The prompts are the better half of forty that were tried, with the
 * style named, which helps; the seed is one for all.
 */

import process from "node:process";
import { contactSheet } from "../src/data/index.ts";
import { SDXL } from "../src/index.node.ts";
import { atomicWrite } from "../src/platform/index.ts";

const PROMPTS = [
  "red apple, noto style",
  "star, emojione style",
  "red heart, noto style",
  "cat face, noto style",
  "smiling face, emojione style",
  "car, noto style",
  "rocket, noto style",
  "moon, noto style",
  "umbrella, noto style",
  "clock, classic style",
  "tiger face, emojione style",
  "bus, classic style",
  "police officer, twemoji style",
  "man cook, noto style",
  "ship, noto style",
  "bicycle, classic style",
  "balloon, noto style",
  "strawberry, flat style",
  "ice cream, noto style",
  "carrot, noto style",
];

await using sdxl = await SDXL.load();
const pictures = [];
for (const prompt of PROMPTS) {
  const [picture] = await sdxl.textToImage(prompt, { seed: 1 });
  pictures.push({ ...picture, label: prompt });
}
const file = process.argv[2] ?? "docs/images/prompts.png";
await atomicWrite(file, await contactSheet(pictures, { columns: 10, scale: 1.5 }));
console.log(file);
