/** @file A program for a loop: what does not depend on its position is computed once. */

import { type Graph, inputsOf, nameOf, parametersOf } from "../graph/index.ts";
import type { HostTensor } from "../tensor/index.ts";
import { type CompileOptions, compile, type Program, type Runnable } from "./program.ts";

type Tensors = Readonly<Record<string, HostTensor>>;

/** Sets of tensors whose results are kept: those with the prompt and without. */
const KEPT = 2;

/**
 * Builds a program of the two parts that `hoist` makes of a graph. A run computes the first only where one of its inputs
 * is another tensor than before: tensors that were given may not be written to.
 */
export async function compileLoop(
  parts: readonly Graph[],
  options: Omit<CompileOptions, "state"> = {},
): Promise<Runnable> {
  const programs: Program[] = [];
  try {
    for (const part of parts) {
      const names = new Set(parametersOf(part).map(({ name }) => name));
      const weights = new Map([...(options.weights ?? [])].filter(([name]) => names.has(name)));
      programs.push(await compile(part, { ...options, weights }));
    }
  } catch (error) {
    for (const program of programs) await program.dispose();
    throw error;
  }
  const [each, first] = [...programs].reverse();
  return first ? new LoopProgram(first, each, parts) : each;
}

class LoopProgram implements Runnable {
  private readonly first: Program;
  private readonly each: Program;
  private readonly inputs: readonly ReadonlySet<string>[];
  /** What `first` made of which tensors, the latest first. */
  private kept: { of: Tensors; made: Tensors }[] = [];

  constructor(first: Program, each: Program, parts: readonly Graph[]) {
    this.first = first;
    this.each = each;
    this.inputs = parts.map((part) => new Set(inputsOf(part).map(nameOf)));
  }

  async run(feeds: Tensors): Promise<Record<string, HostTensor>> {
    const of = (names: ReadonlySet<string>): Tensors =>
      Object.fromEntries(Object.entries(feeds).filter(([name]) => names.has(name)));
    const [first, each] = this.inputs;
    const unknown = Object.keys(feeds).find((name) => !first.has(name) && !each.has(name));
    if (unknown !== undefined) throw new Error(`${unknown} is not an input`);
    return this.each.run({ ...of(each), ...(await this.made(of(first))) });
  }

  private async made(of: Tensors): Promise<Tensors> {
    const known = this.kept.find((kept) => [...this.inputs[0]].every((name) => kept.of[name] === of[name]));
    const kept = known ?? { of, made: await this.first.run(of) };
    this.kept = [kept, ...this.kept.filter((other) => other !== kept)].slice(0, KEPT);
    return kept.made;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kept = [];
    await this.first.dispose();
    await this.each.dispose();
  }
}
