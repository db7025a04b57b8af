/** @file The same picture at several step counts, one after the other, and how long each takes. */

import { evaluations, workMs } from "./format.ts";
import { type Model, server } from "./server.ts";
import type { Settings } from "./settings.ts";
import { Store } from "./store.ts";

export interface Column {
  key: string;
  title: string;
  model: Model;
  steps: number;
  evaluations: number;
}

export interface Measured {
  /** Of the picture. */
  url: string;
  /** Of the network and the decoder; the median where it was measured more than once. */
  ms: number;
  steps: number;
  guidance_scale: number;
}

interface State {
  busy: boolean;
  /** By the keys of columns. */
  measured: ReadonlyMap<string, Measured>;
  error?: string;
  /** Said to those who do not see it. */
  said: string;
}

/** Of the model that others are compared with. */
const TEACHER_STEPS = 32;
/** Of a network that was not made for few steps, where nothing else is there to compare with. */
const FEWER = [16, 8, 4];
/** Pictures that take less than so many milliseconds are made this often: the first one warms up. */
const QUICK = 2000;
const TIMES = 3;

/** Teachers first, then fewer and fewer steps. */
export function columnsOf(models: readonly Model[]): Column[] {
  const column = (model: Model, steps: number, teacher: boolean): Column => ({
    key: `${model.name} ${steps}`,
    title: teacher ? `Teacher, ${steps} steps` : `${steps} step${steps === 1 ? "" : "s"}`,
    model,
    steps,
    evaluations: evaluations({ steps, guidance_scale: teacher ? model.base.guidance_scale : 1 }),
  });
  const teachers = models.filter(({ base }) => !base.distilled).map((m) => column(m, TEACHER_STEPS, true));
  const few = models.flatMap((model) => {
    const { few_steps, base } = model;
    if (base.distilled) return [column(model, base.steps, false)];
    if (few_steps.length > 0) return few_steps.map((steps) => column(model, steps, false));
    return FEWER.map((steps) => ({ ...column(model, steps, true), title: `${steps} steps` }));
  });
  return [...teachers, ...few.sort((a, b) => b.steps - a.steps)];
}

class Comparison {
  readonly state = new Store<State>({ busy: false, measured: new Map(), said: "" });
  private leave?: AbortController;

  async run(columns: readonly Column[], { prompt, seed }: Settings): Promise<void> {
    this.stop();
    this.leave = new AbortController();
    const { signal } = this.leave;
    for (const { url } of this.state.get().measured.values()) URL.revokeObjectURL(url);
    this.state.set({ busy: true, measured: new Map(), said: "" });
    try {
      for (const column of columns) {
        const { model, steps } = column;
        const times: number[] = [];
        let url: string | undefined;
        do {
          const { job, pictures } = await server.draw({ prompt, seed, steps, model: model.name }, { signal });
          const [{ guidance_scale }] = job.pictures;
          times.push(workMs(job));
          url ??= URL.createObjectURL(pictures[0]);
          const measured = { url, ms: median(times), steps, guidance_scale };
          const { measured: before } = this.state.get();
          this.change({ measured: new Map(before).set(column.key, measured) });
        } while (times.length < TIMES && times[0] < QUICK);
      }
      this.change({ busy: false, said: "The comparison is complete" });
    } catch (error) {
      if (!signal.aborted) this.change({ busy: false, error: (error as Error).message });
    }
  }

  stop(): void {
    this.leave?.abort();
    this.change({ busy: false });
  }

  private change(part: Partial<State>): void {
    this.state.set({ ...this.state.get(), ...part });
  }
}

function median(list: readonly number[]): number {
  return [...list].sort((a, b) => a - b)[list.length >> 1];
}

export const comparison: Comparison = new Comparison();
