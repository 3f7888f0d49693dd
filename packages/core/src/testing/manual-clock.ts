import type { Clock, Timer } from '../ports/clock.ts';

interface Waiting {
  at: number;
  run: () => void;
}

/** 2030-01-01T00:00:00Z */
const EPOCH_MS = 1_893_456_000_000;

/** A clock that stands still until a test moves it; what becomes due runs in order, each at its own time. */
export class ManualClock implements Clock {
  /** The delay of every timer that was ever started. */
  readonly started: number[] = [];
  #now = 0;
  readonly #waiting = new Map<number, Waiting>();

  now_ms(): number {
    return this.#now;
  }

  wall_ms(): number {
    return EPOCH_MS + this.#now;
  }

  after(delay_ms: number, run: () => void): Timer {
    const id = this.started.push(delay_ms);
    this.#waiting.set(id, { at: this.#now + Math.max(0, delay_ms), run });
    return { cancel: () => void this.#waiting.delete(id) };
  }

  /** How many timers wait: a stopped part must leave none. */
  get pending(): number {
    return this.#waiting.size;
  }

  advance(by_ms: number): void {
    const until = this.#now + by_ms;
    for (let next = this.#dueBy(until); next !== undefined; next = this.#dueBy(until)) {
      const [id, { at, run }] = next;
      this.#waiting.delete(id);
      this.#now = Math.max(this.#now, at);
      run();
    }
    this.#now = until;
  }

  #dueBy(until: number): [number, Waiting] | undefined {
    let first: [number, Waiting] | undefined;
    for (const entry of this.#waiting) {
      if (entry[1].at <= until && (first === undefined || entry[1].at < first[1].at)) first = entry;
    }
    return first;
  }
}
