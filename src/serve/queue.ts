/** @file What waits: higher priorities first, and among equals in the order of arrival. */

export class PriorityQueue<T> implements Iterable<T> {
  private readonly entries: { item: T; priority: number }[] = [];

  get size(): number {
    return this.entries.length;
  }

  push(item: T, priority: number): void {
    const behind = this.entries.findIndex((entry) => entry.priority < priority);
    this.entries.splice(behind < 0 ? this.entries.length : behind, 0, { item, priority });
  }

  /** Takes the first. */
  shift(): T | undefined {
    return this.entries.shift()?.item;
  }

  /** Takes one out, wherever it is. */
  remove(item: T): void {
    const at = this.entries.findIndex((entry) => entry.item === item);
    if (at >= 0) this.entries.splice(at, 1);
  }

  /** First to last. */
  *[Symbol.iterator](): Iterator<T> {
    for (const { item } of this.entries) yield item;
  }
}
