/**
 * @file The README's contact sheet: twenty prompts, one picture each, all with seed 1 and the bundled model's own
 * settings: `npx tsx scripts/showcase.ts [sheet.png]`. Nothing is picked by hand.
 */

import process from "node:process";
import { contactSheet } from "../src/data/index.ts";
import { SDXL } from "../src/index.node.ts";
import { atomicWrite } from "../src/platform/index.ts";

const PROMPTS = [
  "a red apple",
  "a yellow star",
  "a blue heart",
  "a tree",
  "a cat face",
  "a smiling face",
  "a house",
  "a red car",
  "a fish",
  "pizza",
  "a rocket",
  "the moon",
  "a flower",
  "an umbrella",
  "a snowman",
  "a guitar",
  "a clock",
  "a banana",
  "a penguin",
  "a book",
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
