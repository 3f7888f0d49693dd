/**
 * Virtual time. Events run one after the other, each at its own moment; between two of them everything that the first one has
 * set going by promises comes to rest. There is no other time in a simulation: the same events from the same seed make
 * the same history.
 */
export interface Scheduled {
  cancel(): void;
}

interface Event {
  readonly at_ms: number;
  readonly seq: number;
  run: (() => void) | null;
}

export class Scheduler {
  /** Events that have run. */
  events = 0;
  #now_ms = 0;
  #seq = 0;
  /** A binary heap: by time, then in the order in which they were planned. */
  readonly #heap: Event[] = [];

  get now_ms(): number {
    return this.#now_ms;
  }

  /** What is planned for the past runs now. */
  at(at_ms: number, run: () => void): Scheduled {
    const event: Event = { at_ms: Math.max(at_ms, this.#now_ms), seq: this.#seq++, run };
    this.#push(event);
    return { cancel: () => void (event.run = null) };
  }

  after(delay_ms: number, run: () => void): Scheduled {
    return this.at(this.#now_ms + delay_ms, run);
  }

  /** Runs the next event. @returns false when there is none */
  async step(): Promise<boolean> {
    for (let event = this.#pop(); event !== undefined; event = this.#pop()) {
      if (event.run === null) continue;
      this.#now_ms = event.at_ms;
      this.events++;
      event.run();
      await atRest();
      return true;
    }
    return false;
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): Event | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.at_ms < b.at_ms || (a.at_ms === b.at_ms && a.seq < b.seq);
}

/** A tick comes when no microtask is left, and once more behind the ticks that those have asked for. */
function atRest(): Promise<void> {
  return new Promise((resolve) => {
    queueMicrotask(() => process.nextTick(() => queueMicrotask(() => process.nextTick(resolve))));
  });
}
