/** @file How a thread that computes is told to leave its task. */

/** Shared with the thread, which looks at it between network evaluations. */
export class Stop {
  readonly flag: Int32Array;

  constructor(buffer = new SharedArrayBuffer(4)) {
    this.flag = new Int32Array(buffer);
  }

  request(): void {
    Atomics.store(this.flag, 0, 1);
  }

  get requested(): boolean {
    return Atomics.load(this.flag, 0) === 1;
  }
}
