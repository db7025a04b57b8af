/** @file Which networks of a pipeline are in memory: all of them, or those whose turn it is. */

import type { LoadedLora } from "./adapters.ts";
import type { Components } from "./components.ts";
import { firstChunks } from "./encode.ts";
import { AdaptableProgram, type Adapted, type LazyProgram } from "./layout.ts";
import { areTogether, type MemoryPlanner, type PlanSize, PROGRAMS, type ProgramName } from "./memory.ts";
import { type Compiler, partCompiler, type Run, vaeCompiler } from "./programs.ts";
import type { Prompt } from "./prompts.ts";

export interface LoadedPart {
  name: ProgramName;
  /** From 0. */
  i: number;
  total: number;
}

/** As they are loaded together: the largest is last, as it takes what loading the others has left free. */
const LOADED: readonly ProgramName[] = ["VAE decoder", "text encoders", "UNet"];

interface NetworksOptions {
  /** Adapters that stay. */
  fixed: readonly LoadedLora[];
  run: Run;
  plan: MemoryPlanner;
  /** Called before a network is loaded. */
  onLoad?(part: LoadedPart): void;
  /** Called after it, with the seconds that it took. */
  onLoaded(seconds: number): void;
}

/** Loads networks when they are needed, and releases those that the memory plan leaves no room for. */
export class Networks implements AsyncDisposable {
  private readonly compilers: Readonly<Record<ProgramName, Compiler>>;
  private readonly programs: Readonly<Record<ProgramName, AdaptableProgram>>;
  private readonly plan: MemoryPlanner;
  /** Networks come and go one at a time. */
  private turn: Promise<unknown> = Promise.resolve();

  constructor(parts: Components, { fixed, run, plan, onLoad, onLoaded }: NetworksOptions) {
    this.plan = plan;
    const encode = async (prompts: readonly string[]): Promise<Prompt> => {
      await using program = await this.programs["text encoders"].with();
      return (await program.run(firstChunks(parts, prompts))) as unknown as Prompt;
    };
    this.compilers = {
      "text encoders": partCompiler("text", parts, fixed, run),
      UNet: partCompiler("unet", parts, fixed, { ...run, encode }),
      "VAE decoder": vaeCompiler(parts, run),
    };
    const program = (name: ProgramName, part?: "text" | "unet") =>
      new AdaptableProgram(async (layout) => {
        onLoad?.({ name, i: LOADED.indexOf(name), total: LOADED.length });
        const started = performance.now();
        const compiled = await this.compilers[name].compile(layout);
        onLoaded((performance.now() - started) / 1000);
        return compiled;
      }, part);
    this.programs = {
      "text encoders": program("text encoders", "text"),
      UNet: program("UNet", "unet"),
      "VAE decoder": program("VAE decoder"),
    };
  }

  /**
   * Loads all networks where they may stay together, and else only looks whether they can be loaded.
   * @throws one sentence when the weights of one do not fit its config.
   */
  async load(size: PlanSize): Promise<void> {
    if (areTogether(this.plan(size)))
      for (const name of LOADED) await (await this.programs[name].with())[Symbol.asyncDispose]();
    else {
      for (const name of LOADED) await this.compilers[name].prepare();
      await this.programs["text encoders"].release(); // making int8 weights takes them
    }
  }

  /**
   * A network for pictures of a size, held while it runs only: between two runs others may be drawn, larger ones as
   * well. Where not all may stay in memory, the others may take its place then.
   */
  use(name: ProgramName, size: PlanSize, loras: readonly LoadedLora[] = []): LazyProgram {
    const plan = this.plan(size);
    const take = (): Promise<Adapted> => {
      if (areTogether(plan)) return this.programs[name].with(loras);
      const turn = this.turn.then(() => this.alone(name, plan.beside[name], loras));
      this.turn = turn.catch(() => {});
      return turn;
    };
    return {
      run: async (feeds) => {
        await using program = await take();
        return await program.run(feeds);
      },
    };
  }

  /** A network with those beside it that may stay; waits for the runs of the others. */
  private async alone(
    name: ProgramName,
    beside: readonly ProgramName[],
    loras: readonly LoadedLora[],
  ): Promise<Adapted> {
    for (const other of PROGRAMS)
      if (other !== name && !beside.includes(other)) await this.programs[other].release();
    return this.programs[name].with(loras);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(Object.values(this.programs).map((program) => program[Symbol.asyncDispose]()));
  }
}
