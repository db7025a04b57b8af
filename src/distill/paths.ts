/**
 * @file Points on the teacher's own paths from pure noise to pictures, as places for a student to learn from. When it draws
 * it comes by these, and they differ from noised pictures: what guidance has done to them already, it does no more.
 * B batch, P points of a path.
 */

import { createHash } from "node:crypto";
import { type Dataset, latentCache } from "../data/index.ts";
import { graph } from "../graph/index.ts";
import { compile, type Program } from "../runtime/index.ts";
import { type FloatTensor, floats, Generator, type HostTensor } from "../tensor/index.ts";
import { captionFeeds, type Material } from "../train/index.ts";
import { type Setting, teacherPass } from "./lightning.ts";

/** Where the teacher goes. */
export interface PathsOptions {
  material: Material;
  /** Of one step, with the teacher's guidance; its batch says how many paths are walked at a time. */
  setting: Omit<Setting, "steps">;
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
  /** The caption that a path is about, as a row of the caption bank. */
  captions(paths: readonly number[]): number[];
  /** Latents at all points of paths of one size, [B,P,C,h,w]. */
  at(paths: readonly number[]): Promise<FloatTensor>;
}

/** Seed of the noise that a path starts from: far from those that people, and `fewstep eval`, draw with. */
export function pathSeed(seed: number, path: number): number {
  return 2 ** 31 + 1e5 * seed + path;
}

/** Walks all paths that were not walked before. Each has a caption of its own, and noise. Free it. */
export async function walkPaths(options: PathsOptions): Promise<Paths> {
  const { material, setting, weights, count, times, points, seed } = options;
  const { data, bank } = material;
  const random = new Generator(seed);
  const rows = Array.from({ length: count }, () => random.integer(data.length * bank.perPicture));
  const bucketOf = new Map(data.buckets.flatMap(({ members }, b) => members.map((i) => [i, b] as const)));
  const picture = (path: number) => Math.floor(rows[path] / bank.perPicture);
  const buckets = data.buckets.map((bucket, b) => ({
    ...bucket,
    members: rows.flatMap((_, path) => (bucketOf.get(picture(path)) === b ? [path] : [])),
  }));
  const { batch: B } = setting.batch;
  const programs = new Map<number, Promise<Program>>();
  const programOf = (b: number): Promise<Program> => {
    const { height, width } = sidesOf(b);
    const known = programs.get(b);
    if (known) return known;
    const pass = teacherPass({ ...setting, batch: { ...setting.batch, height, width }, steps: 1 });
    const program = compile(graph(pass.outputs!), { weights });
    programs.set(b, program);
    return program;
  };
  const sidesOf = (b: number) => ({
    height: buckets[b].height / material.scaleFactor,
    width: buckets[b].width / material.scaleFactor,
  });
  const noise = (path: number, shape: readonly number[]) =>
    new Generator(pathSeed(seed, path)).randn([1, ...shape]).data;

  /** [B,P·C,h,w] */
  const walk = async (_: FloatTensor, paths: readonly number[]): Promise<FloatTensor> => {
    const b = bucketOf.get(picture(paths[0]))!;
    const { height, width } = sidesOf(b);
    const program = await programOf(b);
    const shape = [setting.config.in_channels, height, width];
    const size = shape.reduce((n, d) => n * d, 1);
    const all = Array.from({ length: B }, (_, i) => paths[Math.min(i, paths.length - 1)]); // the program's batch
    const told = {
      ...captionFeeds(
        material,
        all.map((path) => rows[path]),
      ),
      ...options.empty,
    };
    const walked = floats([paths.length, points.length * shape[0], ...shape.slice(1)]);
    let sample = floats([B, ...shape]);
    for (const [i, path] of all.entries()) sample.data.set(noise(path, shape), i * size);
    for (const [k, time] of times.entries()) {
      const p = points.indexOf(time);
      for (let i = 0; p >= 0 && i < paths.length; i++)
        walked.data.set(sample.data.subarray(i * size, (i + 1) * size), (i * points.length + p) * size);
      const next = times[k + 1] ?? 0;
      if (time <= Math.min(...points)) break;
      const { target } = await program.run({ sample, ...options.levels(time, next), ...told });
      sample = target as FloatTensor;
    }
    return walked;
  };
  const hash = createHash("sha256");
  for (const [name, { data }] of weights) hash.update(name).update(data);
  const key = JSON.stringify([hash.digest("hex"), setting.guidance, times, points, seed]);
  const told = (path: number) => {
    const digest = createHash("sha256");
    for (const { data } of Object.values(captionFeeds(material, [rows[path]]))) digest.update(data);
    return digest.digest("hex");
  };
  const dataset: Pick<Dataset, "length" | "buckets" | "pixels" | "name" | "id"> = {
    length: count,
    buckets,
    pixels: async (paths) => floats([paths.length, 0]),
    name: (path) => `path ${path}`,
    id: (path) => `${path} ${told(path)}`,
  };
  const { folder, onProgress } = options;
  const cache = await latentCache({ dataset, encode: walk, key, folder, batch: B, onProgress });
  for (const program of programs.values()) await (await program).dispose();
  return {
    members: buckets.map(({ members }) => members),
    captions: (paths) => paths.map((path) => rows[path]),
    at: async (paths) => {
      const { shape, data } = await cache.latents(paths);
      return floats([paths.length, points.length, shape[1] / points.length, ...shape.slice(2)], data);
    },
    [Symbol.asyncDispose]: () => cache[Symbol.asyncDispose](),
  };
}
