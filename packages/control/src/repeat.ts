import type { Clock, Timer } from '@flotilla/core';

/** Something that is done again and again: the next time begins to wait when the last is over. */
export interface Repeating {
  /** Resolves when a run under way is over; none begins after. Calling it again changes nothing. */
  stop(): Promise<void>;
}

/** @param run handles its own failures */
export function repeat(clock: Clock, delay_ms: () => number, run: () => Promise<unknown>): Repeating {
  let stopped = false;
  let running: Promise<unknown> = Promise.resolve();
  let timer: Timer = clock.after(delay_ms(), next);

  function next(): void {
    running = run().finally(() => {
      if (!stopped) timer = clock.after(delay_ms(), next);
    });
  }

  return {
    async stop() {
      stopped = true;
      timer.cancel();
      await running;
    },
  };
}
