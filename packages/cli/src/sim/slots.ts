/** How many requests the simulated machine works on at once; the others wait in the order in which they came. */
export class Slots {
  readonly capacity: number;
  #taken = 0;
  readonly #waiting = new Set<() => void>();

  constructor(capacity: number) {
    this.capacity = capacity;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /** Resolves to whether a slot was taken: not when the signal came first. */
  take(signal: AbortSignal): Promise<boolean> {
    if (signal.aborted) return Promise.resolve(false);
    if (this.#taken < this.capacity) {
      this.#taken += 1;
      return Promise.resolve(true);
    }
    return new Promise((resolve) => {
      const granted = () => {
        signal.removeEventListener('abort', left);
        resolve(true);
      };
      const left = () => {
        this.#waiting.delete(granted);
        resolve(false);
      };
      this.#waiting.add(granted);
      signal.addEventListener('abort', left, { once: true });
    });
  }

  /** Hands the slot to who waits longest, else frees it. */
  release(): void {
    const [next] = this.#waiting;
    if (next === undefined) {
      this.#taken -= 1;
      return;
    }
    this.#waiting.delete(next);
    next();
  }
}
