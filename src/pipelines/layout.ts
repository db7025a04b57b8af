/**
 * @file Adapters as inputs of a program: others, or other strengths, need neither the base's weights nor another
 * program. Plain ones that go on together are one of higher rank: Σ sᵢ·upᵢ·downᵢ = [s₁·up₁ s₂·up₂ …]·[down₁; down₂; …].
 */

import { type Dim, input, symbol } from "../graph/index.ts";
import type { Change } from "../nn/index.ts";
import type { Runnable } from "../runtime/index.ts";
import { type FloatTensor, floats, type HostTensor } from "../tensor/index.ts";
import type { Delta } from "../weights/index.ts";
import { type LoadedLora, type Part, strengthOn } from "./adapters.ts";

/** What a program has inputs for. */
export interface Layout {
  /** Shapes [out, width] of weights that take a product of any rank, by name. */
  products: ReadonlyMap<string, readonly number[]>;
  /** Shapes of parameters that take a difference. */
  differences: ReadonlyMap<string, readonly number[]>;
  /** Adapters that cannot be added up like this: their changes by parameter. */
  apart: readonly ReadonlyMap<string, Form>[];
}

/** A change with factors of given shapes. */
interface Form {
  kind: Delta["kind"];
  shapes: Readonly<Record<string, readonly number[]>>;
  magnitude?: readonly number[];
}

type Deltas = ReadonlyMap<string, Delta>;

/** A plain change: its parts add up with those of others. */
function isPlain({ kind, magnitude }: Delta): boolean {
  return !magnitude && (kind === "product" || kind === "full");
}

function split(deltas: Deltas, plain: boolean): Map<string, Delta> {
  return new Map([...deltas].filter(([, delta]) => isPlain(delta) === plain));
}

/** What some adapters need. */
function layoutOf(all: readonly Deltas[]): Layout {
  const products = new Map<string, readonly number[]>();
  const differences = new Map<string, readonly number[]>();
  for (const deltas of all)
    for (const [name, { kind, factors }] of split(deltas, true))
      if (kind === "full") differences.set(name, factors.diff.shape);
      else products.set(name, [factors.up.shape[0], factors.down.shape[1]]);
  const forms = all.map((deltas) => new Map([...split(deltas, false)].map(([name, d]) => [name, formOf(d)])));
  return { products, differences, apart: forms.filter((form) => form.size > 0) };
}

function formOf({ kind, factors, magnitude }: Delta): Form {
  const shapes = Object.entries(factors).map(([name, { shape }]) => [name, shape] as const);
  return { kind, shapes: Object.fromEntries(shapes), magnitude: magnitude?.shape };
}

/** The place in `layout` of each adapter that stands apart in `need`; undefined when there is no room for all. */
function placesIn(layout: Layout, need: Layout): number[] | undefined {
  for (const field of ["products", "differences"] as const)
    for (const name of need[field].keys()) if (!layout[field].has(name)) return undefined;
  const text = (forms: ReadonlyMap<string, Form>) =>
    JSON.stringify([...forms].sort(([a], [b]) => (a < b ? -1 : 1)));
  const free = layout.apart.map(text);
  const places = need.apart.map((forms) => {
    const i = free.indexOf(text(forms));
    if (i >= 0) free[i] = "";
    return i;
  });
  return places.includes(-1) ? undefined : places;
}

/** Room for what there was room for and for what is needed; of those that stand apart, only for these. */
function widened(layout: Layout, need: Layout): Layout {
  return {
    products: new Map([...layout.products, ...need.products]),
    differences: new Map([...layout.differences, ...need.differences]),
    apart: need.apart,
  };
}

const apartName = (name: string, i: number, factor: string) => `${name}.apart${i}_${factor}`;
const strengthName = (i: number) => `apart${i}_strength`;

/** What the inputs of a layout change in a parameter. */
export function layoutChanges(layout: Layout, name: string): Change[] {
  const plain = { scale: 1, strength: 1 };
  const leaf = (name: string, shape: readonly Dim[]) => input(name, "float32", shape);
  const changes: Change[] = [];
  const product = layout.products.get(name);
  if (product) {
    const [out, width] = product;
    const rank = symbol(`rank_${name.replace(/\W/g, "_")}`);
    const shapes: Readonly<Record<string, Dim[]>> = { up: [out, rank], down: [rank, width] };
    changes.push({ kind: "product", factor: (f) => leaf(`${name}.lora_${f}`, shapes[f]), ...plain });
  }
  const difference = layout.differences.get(name);
  if (difference)
    changes.push({ kind: "full", factor: () => leaf(`${name}.lora_diff`, difference), ...plain });
  for (const [i, forms] of layout.apart.entries()) {
    const form = forms.get(name);
    if (!form) continue;
    changes.push({
      kind: form.kind,
      factor: (f) => leaf(apartName(name, i, f), form.shapes[f]),
      scale: 1,
      strength: leaf(strengthName(i), []),
      magnitude: form.magnitude && leaf(apartName(name, i, "magnitude"), form.magnitude),
    });
  }
  return changes;
}

interface Weighted {
  deltas: Deltas;
  strength: number;
}

function areSame(a: readonly Weighted[], b: readonly Weighted[]): boolean {
  return a.length === b.length && a.every((x, i) => x.deltas === b[i].deltas && x.strength === b[i].strength);
}

/** Inputs of a layout for some adapters; zeros where they change nothing. */
function feedsOf(
  layout: Layout,
  loras: readonly Weighted[],
  places: readonly number[],
): Record<string, HostTensor> {
  const feeds: Record<string, HostTensor> = {};
  const changesOf = (name: string, kind: Delta["kind"]) =>
    loras.flatMap(({ deltas, strength }) => {
      const delta = deltas.get(name);
      return delta && isPlain(delta) && delta.kind === kind ? { ...delta, by: strength * delta.scale } : [];
    });
  for (const [name, shape] of layout.products) {
    const { up, down } = joined(changesOf(name, "product"), shape);
    feeds[`${name}.lora_up`] = up;
    feeds[`${name}.lora_down`] = down;
  }
  for (const [name, shape] of layout.differences) {
    const sum = floats(shape);
    for (const { factors, by } of changesOf(name, "full"))
      for (const [i, v] of dataOf(factors.diff).entries()) sum.data[i] += by * v;
    feeds[`${name}.lora_diff`] = sum;
  }
  const standing = loras.filter(({ deltas }) => split(deltas, false).size > 0);
  for (const [i, forms] of layout.apart.entries()) {
    const lora = standing[places.indexOf(i)];
    feeds[strengthName(i)] = floats([], [lora?.strength ?? 0]);
    for (const [name, form] of forms) {
      const delta = lora?.deltas.get(name);
      for (const [factor, shape] of Object.entries(form.shapes))
        feeds[apartName(name, i, factor)] = delta ? scaled(delta, factor) : floats(shape);
      if (form.magnitude)
        feeds[apartName(name, i, "magnitude")] = (delta?.magnitude as HostTensor) ?? floats(form.magnitude);
    }
  }
  return feeds;
}

function dataOf(factor: Delta["factors"][string]): Float32Array {
  return (factor as FloatTensor).data;
}

/** A factor; the scale goes into one of them. */
function scaled({ factors, scale }: Delta, name: string): FloatTensor {
  const factor = factors[name] as FloatTensor;
  if (scale === 1 || !["up", "up1", "left", "diff"].includes(name)) return factor;
  return floats(
    factor.shape,
    factor.data.map((v) => v * scale),
  );
}

/** Products as one, [out,R]·[R,width]. */
function joined(
  products: readonly (Delta & { by: number })[],
  [out, width]: readonly number[],
): { up: FloatTensor; down: FloatTensor } {
  const ranks = products.map(({ factors }) => factors.down.shape[0]);
  const R = Math.max(
    1,
    ranks.reduce((a, b) => a + b, 0),
  );
  const [up, down] = [floats([out, R]), floats([R, width])];
  let at = 0;
  for (const [n, { factors, by }] of products.entries()) {
    const [u, r] = [dataOf(factors.up), ranks[n]];
    down.data.set(dataOf(factors.down), at * width);
    for (let o = 0; o < out; o++) for (let i = 0; i < r; i++) up.data[o * R + at + i] = by * u[o * r + i];
    at += r;
  }
  return { up, down };
}

/** A program with some adapters in it, held until it is disposed of. */
export type Adapted = Runnable;

/** A program that is there whenever it is run. */
export type LazyProgram = Pick<Runnable, "run">;

interface Held {
  program: Runnable;
  users: number;
  /** Called when it was freed after its last use. */
  freed?: () => void;
}

const NO_ROOM: Layout = { products: new Map(), differences: new Map(), apart: [] };

/**
 * A program whose adapters may be others at every run. It is compiled when it is first used, and again after it was
 * released, or for adapters that it has no room for; room costs nothing where there are none.
 */
export class AdaptableProgram implements AsyncDisposable {
  private readonly compile: (layout: Layout) => Promise<Runnable>;
  private readonly part?: Part;
  private layout = NO_ROOM;
  private held?: Held;
  /** One adapter set at a time is prepared. */
  private turn: Promise<unknown> = Promise.resolve();
  private last?: { loras: readonly Weighted[]; feeds: Record<string, HostTensor> };
  private isDisposed = false;

  /** @param part whose changes go on it; none for a program that adapters leave alone. */
  constructor(compile: (layout: Layout) => Promise<Runnable>, part?: Part) {
    this.compile = compile;
    this.part = part;
  }

  /** @param loras with their tensors. */
  with(loras: readonly LoadedLora[] = []): Promise<Adapted> {
    return this.inTurn(() => this.prepare(loras));
  }

  /** Gives its memory back, as soon as nobody holds it. */
  release(): Promise<void> {
    return this.inTurn(async () => {
      const old = this.held;
      this.held = undefined;
      if (old?.users === 0) await old.program[Symbol.asyncDispose]();
      else if (old) await new Promise<void>((resolve) => (old.freed = resolve));
    });
  }

  private inTurn<T>(act: () => Promise<T>): Promise<T> {
    const turn = this.turn.then(act);
    this.turn = turn.catch(() => {});
    return turn;
  }

  private async prepare(loras: readonly LoadedLora[]): Promise<Adapted> {
    if (this.isDisposed) throw new Error("the model was disposed of; load it again");
    const { part } = this;
    const weighted = (part === undefined ? [] : loras)
      .map((lora) => ({ deltas: lora.deltas[part!], strength: strengthOn(part!, lora) }))
      .filter(({ deltas, strength }) => deltas.size > 0 && strength !== 0);
    if (!this.last || !areSame(this.last.loras, weighted)) {
      const need = layoutOf(weighted.map(({ deltas }) => deltas));
      this.last = undefined;
      if (!placesIn(this.layout, need)) await this.recompile(widened(this.layout, need));
      this.last = { loras: weighted, feeds: feedsOf(this.layout, weighted, placesIn(this.layout, need)!) };
    }
    if (!this.held) await this.recompile(this.layout);
    const held = this.held!;
    held.users++;
    const { feeds } = this.last;
    return {
      run: (own) => held.program.run({ ...own, ...feeds }),
      [Symbol.asyncDispose]: async () => {
        held.users--;
        if (held === this.held || held.users > 0) return;
        await held.program[Symbol.asyncDispose]();
        held.freed?.();
      },
    };
  }

  private async recompile(layout: Layout): Promise<void> {
    const old = this.held;
    this.held = undefined;
    if (old?.users === 0) await old.program[Symbol.asyncDispose](); // before, so that the weights are not there twice
    this.held = { program: await this.compile(layout), users: 0 };
    this.layout = layout;
  }

  /** After the runs that were begun; again has no effect. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.isDisposed = true;
    await this.release();
  }
}
