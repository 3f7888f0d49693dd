import type { Clock, Timer } from '../ports/clock.ts';

/** Something with a next deadline, which may move later at any time without saying so. */
export interface Expiring {
  /** Where it is among those that are watched; -1: it is none of them. Kept by `Deadlines`. */
  seat: number;
  /** By the clock's `now_ms`; Infinity: none. */
  dueAt(): number;
  expire(now_ms: number): void;
}

/** One timer for the deadlines of all requests: it is set for the earliest known, looks at all when it fires. */
export class Deadlines {
  readonly #clock: Clock;
  /** No `Set`: see churn-map.ts. */
  #items: Expiring[] = [];
  #timer: Timer | null = null;
  #armed_for = Number.POSITIVE_INFINITY;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Watches the item; call again when its deadline has moved earlier. */
  watch(item: Expiring): void {
    if (item.seat < 0) item.seat = this.#items.push(item) - 1;
    this.#arm(item.dueAt());
  }

  forget(item: Expiring): void {
    // The timer stays: firing for nothing now and then costs less than arming it for each request.
    if (item.seat < 0) return;
    const last = this.#items.pop()!;
    if (last !== item) {
      last.seat = item.seat;
      this.#items[last.seat] = last;
    }
    item.seat = -1;
  }

  stop(): void {
    for (const item of this.#items) item.seat = -1;
    this.#items = [];
    this.#disarm();
  }

  #arm(due_ms: number): void {
    if (due_ms >= this.#armed_for) return;
    this.#disarm();
    this.#armed_for = due_ms;
    // A timer takes 2^31 ms at most; firing early only looks and arms again.
    const delay_ms = Math.min(due_ms - this.#clock.now_ms(), 2 ** 31 - 1);
    this.#timer = this.#clock.after(delay_ms, () => this.#fire());
  }

  #disarm(): void {
    this.#timer?.cancel();
    this.#timer = null;
    this.#armed_for = Number.POSITIVE_INFINITY;
  }

  #fire(): void {
    this.#disarm();
    const now_ms = this.#clock.now_ms();
    for (const item of [...this.#items]) if (item.seat >= 0 && item.dueAt() <= now_ms) item.expire(now_ms);
    let next = Number.POSITIVE_INFINITY;
    for (const item of this.#items) next = Math.min(next, item.dueAt());
    if (next !== Number.POSITIVE_INFINITY) this.#arm(next);
  }
}
