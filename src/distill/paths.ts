/**
 * @file Points on the teacher's own paths from pure noise to pictures, as places for a student to learn from. When it draws
 * it comes by these, and they differ from noised pictures: what guidance has done to them already, it does no more.
 * B batch, P points of a path.
 */

import { createHash } from "node:crypto";
import { type Bucket, latentCache } from "../data/index.ts";
import { graph } from "../graph/index.ts";
import { compile, type Program } from "../runtime/index.ts";
import {
  concatenate,
  type FloatTensor,
  floats,
  Generator,
  type HostTensor,
  sizeOf,
} from "../tensor/index.ts";
import { captionFeeds, type Material, type UNetBatch } from "../train/index.ts";
import { type Setting, teacherPass } from "./lightning.ts";

/** Where the teacher goes. */
export interface PathsOptions {
  material: Material;
  /** Of one step, with the teacher's guidance. */
  setting: Omit<Setting, "steps" | "batch">;
  /** Sizes of what is walked at a time with latents of a bucket. */
  batchOf(bucket: Bucket): UNetBatch;
  /** Inputs of a step from one time to the next, the same for all latents. */
  levels(from: number, to: number): Record<string, FloatTensor>;
  /** Encoding of the empty prompt, where there is guidance. */
  empty: Readonly<Record<string, HostTensor>>;
  /** The teacher's, as its pass calls them. */
  weights: ReadonlyMap<string, HostTensor>;
  /** Of paths. */
  count: number;
  /** Times that are walked through, from the last of training on, and which of them are points. */
  times: readonly number[];
  points: readonly number[];
  /** Of the paths' files, which are read again where the same teacher walks the same paths. */
  folder: string;
  seed: number;
  onProgress?(done: number, total: number): void;
}

export interface Paths extends AsyncDisposable {
  /** Paths of one size each, as a dataset has buckets of pictures. */
  members: readonly (readonly number[])[];
  /** The caption that each path is about, as a row of the caption bank. */
  captions: readonly number[];
  /** Latents at all points of paths of one size, [B,P,C,h,w]. */
  latents(paths: readonly number[]): Promise<FloatTensor>;
}

/** Seed of the noise that a path starts from: far from those that people, and `fewstep eval`, draw with. */
export function pathSeed(seed: number, path: number): number {
  return 2 ** 31 + 1e5 * seed + path;
}

/** Walks all paths that were not walked before. Each has a random caption, and noise of its own. Free it. */
export async function walkPaths(options: PathsOptions): Promise<Paths> {
  const { material, setting, batchOf, weights, count, times, points, folder, seed, onProgress } = options;
  const { data, bank } = material;
  const random = new Generator(seed);
  const captions = Array.from({ length: count }, () => random.integer(data.length * bank.perPicture));
  const buckets = data.buckets.map((bucket) => {
    const pictures = new Set(bucket.members);
    const isHere = (row: number) => pictures.has(Math.floor(row / bank.perPicture));
    return { ...bucket, members: captions.flatMap((row, path) => (isHere(row) ? [path] : [])) };
  });
  const compileStep = (batch: UNetBatch) =>
    compile(graph(teacherPass({ ...setting, batch, steps: 1 }).outputs!), { weights });
  const programs = new Map<Bucket, Program>();
  const encode = async (paths: readonly number[]): Promise<FloatTensor> => {
    const bucket = buckets.find(({ members }) => members.includes(paths[0]))!;
    const size = batchOf(bucket);
    const program = programs.get(bucket) ?? (await compileStep(size));
    programs.set(bucket, program);
    const full = Array.from({ length: size.batch }, (_, i) => paths[Math.min(i, paths.length - 1)]);
    const shape = [setting.config.in_channels, size.height, size.width];
    const starts = full.map((path) => new Generator(pathSeed(seed, path)).randn([1, ...shape]));
    const rows = full.map((path) => captions[path]);
    const told = { ...captionFeeds(material, rows), ...options.empty };
    const walked = await walk(program, concatenate(starts), told, options);
    const n = sizeOf(shape);
    const list = paths.flatMap((_, i) =>
      walked.map((x) => floats([1, ...shape], x.data.subarray(i * n, (i + 1) * n))),
    );
    const { data } = concatenate(list);
    return floats([paths.length, points.length * shape[0], ...shape.slice(1)], data);
  };
  const id = (path: number) => `${path} ${hashOf(captionFeeds(material, [captions[path]]))}`;
  const dataset = { length: count, buckets, name: (path: number) => `path ${path}`, id };
  const key = JSON.stringify([hashOf(Object.fromEntries(weights)), setting.guidance, times, points, seed]);
  const batch = batchOf(data.buckets[0]).batch;
  const cache = await latentCache({ dataset, encode, key, folder, batch, onProgress });
  for (const program of programs.values()) await program.dispose();
  return {
    members: buckets.map(({ members }) => members),
    captions,
    latents: async (paths) => {
      const { shape, data } = await cache.latents(paths);
      return floats([paths.length, points.length, shape[1] / points.length, ...shape.slice(2)], data);
    },
    [Symbol.asyncDispose]: () => cache[Symbol.asyncDispose](),
  };
}

/** Latents at the points, in their order, [B,C,h,w] each. */
async function walk(
  program: Program,
  start: FloatTensor,
  told: Readonly<Record<string, HostTensor>>,
  { times, points, levels }: Pick<PathsOptions, "times" | "points" | "levels">,
): Promise<FloatTensor[]> {
  const passed = new Map<number, FloatTensor>();
  const last = Math.min(...points);
  let sample = start;
  for (const [k, time] of times.entries()) {
    passed.set(time, sample);
    if (time === last) break;
    const { target } = await program.run({ sample, ...levels(time, times[k + 1]), ...told });
    sample = target as FloatTensor;
  }
  return points.map((time) => passed.get(time)!);
}

function hashOf(tensors: Readonly<Record<string, HostTensor>>): string {
  const hash = createHash("sha256");
  for (const [name, { data }] of Object.entries(tensors)) hash.update(name).update(data);
  return hash.digest("hex");
}
