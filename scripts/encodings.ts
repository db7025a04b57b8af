/**
 * @file How well the text encoders of a folder tell captions apart: the effective rank (Σλ)²/Σλ² of the covariance of
 * what they give for the captions of the icon dataset. `npx tsx scripts/encodings.ts [folder] [icons]`
 */

import process from "node:process";
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import "../src/index.node.ts";
import { loadIcons } from "../src/data/index.ts";
import { readTextEncoders } from "../src/train/material.ts";
import { promptEncoder } from "../src/train/tasks.ts";

const CAPTIONS = 1200;

const [folder = "models/fewstep", icons = "icons"] = process.argv.slice(2);
const { configs, weights, tokenizers } = await readTextEncoders(folder);
await using encoder = await promptEncoder(configs, new Map(Object.entries(weights)), tokenizers);
const data = await loadIcons(icons, ["train"]);
const stride = Math.floor(data.length / CAPTIONS);
const captions = Array.from({ length: CAPTIONS }, (_, i) => data.caption(i * stride, () => 0.5));
const { hidden, pooled } = await encoder.encode(captions);
const [, tokens, width] = hidden.shape;

const rows = (values: Float32Array) =>
  Matrix.from1DArray(CAPTIONS, values.length / CAPTIONS, Array.from(values));
const means = new Float32Array(CAPTIONS * width);
for (const [i, value] of hidden.data.entries())
  means[Math.floor(i / (tokens * width)) * width + (i % width)] += value / tokens;

for (const [name, m] of Object.entries({
  pooled: rows(pooled.data),
  "hidden, mean over tokens": rows(means),
})) {
  const centred = m.subRowVector(m.mean("column"));
  const covariance = centred.transpose().mmul(centred);
  const variances = new EigenvalueDecomposition(covariance, { assumeSymmetric: true }).realEigenvalues;
  const sum = variances.reduce((a, b) => a + b, 0);
  const rank = sum ** 2 / variances.reduce((a, b) => a + b * b, 0);
  const largest = variances.sort((a, b) => b - a).slice(0, 20);
  const share = largest.reduce((a, b) => a + b, 0) / sum;
  console.log(`${name}: effective rank ${rank.toFixed(1)}, ${(100 * share).toFixed(1)} % in 20 directions`);
}
