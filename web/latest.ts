/**
 * @file Work on what was asked last. Wishes that come while something is done replace each other; what is done comes to its
 * end while they come, so that pictures appear between two keys, and is cancelled in the first pause if it would take long.
 */

/** Milliseconds: quick work is never cancelled. */
const QUICK = 150;
/** Milliseconds: longer work begins only in a pause. */
const LONG = 1000;
/** Milliseconds without a new wish. */
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
    return this.took > QUICK;
  }

  /** @param now cancels what runs and does not wait for a pause */
  ask(wish: Wish, { now = false } = {}): void {
    clearTimeout(this.timer);
    this.waiting = { wish, due: now || this.took <= LONG };
    if (now) this.running?.controller.abort();
    else this.timer = setTimeout(() => this.pause(), PAUSE);
    void this.next();
  }

  cancel(): void {
    clearTimeout(this.timer);
    this.waiting = undefined;
    this.running?.controller.abort();
  }

  private pause(): void {
    if (!this.waiting) return;
    this.waiting.due = true;
    if (this.running && !this.endsSoon(performance.now() - this.running.since))
      this.running.controller.abort();
    void this.next();
  }

  /** Whether what runs is worth its end, as far as the last work tells; it may take longer than that. */
  private endsSoon(elapsed: number): boolean {
    return this.slow ? elapsed >= this.took / 2 && elapsed <= 2 * this.took : elapsed <= 2 * QUICK;
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
