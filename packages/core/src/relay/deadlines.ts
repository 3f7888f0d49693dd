import type { Clock, Timer } from '../ports/clock.ts';

/** Something with a next deadline, which may move later at any time without saying so. */
export interface Expiring {
  /** By the clock's `now_ms`; Infinity: none. */
  dueAt(): number;
  expire(now_ms: number): void;
}

/** One timer for the deadlines of all requests: it is set for the earliest known, looks at all when it fires. */
export class Deadlines {
  readonly #clock: Clock;
  readonly #items = new Set<Expiring>();
  #timer: Timer | null = null;
  #armed_for = Number.POSITIVE_INFINITY;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Watches the item; call again when its deadline has moved earlier. */
  watch(item: Expiring): void {
    this.#items.add(item);
    this.#arm(item.dueAt());
  }

  forget(item: Expiring): void {
    // The timer stays: firing for nothing now and then costs less than arming it for each request.
    this.#items.delete(item);
  }

  stop(): void {
    this.#items.clear();
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
    for (const item of this.#items) if (item.dueAt() <= now_ms) item.expire(now_ms);
    let next = Number.POSITIVE_INFINITY;
    for (const item of this.#items) next = Math.min(next, item.dueAt());
    if (next !== Number.POSITIVE_INFINITY) this.#arm(next);
  }
}
