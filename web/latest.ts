/** @file Work on what was asked last: what was asked before it is dropped, or cancelled when it takes long. */

/** Milliseconds: work that is done sooner is let come to its end, so that pictures appear between two keys. */
const PATIENCE = 150;
/** Milliseconds without a new wish before slow work begins. */
const PAUSE = 150;

export class Latest<Wish> {
  private readonly work: (wish: Wish, signal: AbortSignal) => Promise<void>;
  private running?: { controller: AbortController; since: number };
  private waiting?: { wish: Wish; due: boolean };
  private timer?: ReturnType<typeof setTimeout>;
  /** Milliseconds that the last work took. */
  private took = 0;

  /** @param work never rejects */
  constructor(work: (wish: Wish, signal: AbortSignal) => Promise<void>) {
    this.work = work;
  }

  /** Whether the next work is expected to take so long that someone would wait for it. */
  get slow(): boolean {
    return this.took > PATIENCE;
  }

  /** @param now cancels what runs and does not wait for a pause */
  ask(wish: Wish, { now = false } = {}): void {
    clearTimeout(this.timer);
    this.waiting = { wish, due: now || !this.slow };
    const { running } = this;
    if (running && (now || this.slow || performance.now() - running.since > 2 * PATIENCE))
      running.controller.abort();
    if (this.waiting.due) return void this.next();
    this.timer = setTimeout(() => {
      if (this.waiting) this.waiting.due = true;
      void this.next();
    }, PAUSE);
  }

  cancel(): void {
    clearTimeout(this.timer);
    this.waiting = undefined;
    this.running?.controller.abort();
  }

  private async next(): Promise<void> {
    if (this.running || !this.waiting?.due) return;
    const { wish } = this.waiting;
    const controller = new AbortController();
    const since = performance.now();
    this.waiting = undefined;
    this.running = { controller, since };
    await this.work(wish, controller.signal);
    if (!controller.signal.aborted) this.took = performance.now() - since;
    this.running = undefined;
    void this.next();
  }
}
