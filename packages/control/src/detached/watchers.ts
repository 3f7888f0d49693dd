/**
 * Who waits to hear of a job: a set of listeners a job, told in this process only. A hint that does not come (another
 * replica moved the job) is made up for by those who listen, with a slow look at the store.
 */
export interface Watchers {
  /** Undefined: too many listen already. @returns how to stop */
  watch(job: string, told: () => void): (() => void) | undefined;
  moved(job: string): void;
  readonly count: number;
}

const WATCHERS_MOST = 10_000;

export function createWatchers(): Watchers {
  const listeners = new Map<string, Set<() => void>>();
  let count = 0;
  return {
    get count() {
      return count;
    },
    watch(job, told) {
      if (count >= WATCHERS_MOST) return undefined;
      const own = listeners.get(job) ?? new Set();
      listeners.set(job, own);
      const listener = () => told();
      own.add(listener);
      count++;
      return () => {
        if (!own.delete(listener)) return;
        count--;
        if (own.size === 0) listeners.delete(job);
      };
    },
    moved(job) {
      for (const told of listeners.get(job) ?? []) told();
    },
  };
}
