import type { Clock, Finish, JobFence, Requeue, ResultOutcome, Store } from '@flotilla/core';
import { Batcher } from '../store/batcher.ts';

/**
 * The transitions of detached jobs on their way to the store: whatever queued while the last flush was in flight goes
 * in the next one, starts before requeues before ends, so that a job's own keep their order. A flush that may have been
 * committed is sent again: the store answers `duplicate` then.
 */
type Transition =
  | { type: 'start'; row: JobFence }
  | { type: 'requeue'; row: Requeue }
  | { type: 'finish'; row: Finish };

export interface Transitions {
  readonly waiting: number;
  /** Those whose attempt's end is on its way. */
  jobs(): string[];
  /** Rejects only where the store refuses this row for good, or the process stops. */
  add(transition: Transition): Promise<ResultOutcome>;
  close(latest_ms: number): Promise<void>;
}

export interface TransitionDeps {
  store: Pick<Store, 'startJobs' | 'requeueJobs' | 'finishJobs' | 'ping'>;
  clock: Clock;
  flushed: (report: { rows: number; duration_ms: number; failed: boolean }) => void;
}

/** Their number is that of the slots; results are large, so few go in one statement. */
const ROWS_MOST = 100;
/** A node keeps what is not answered; nobody else waits. */
const COMMIT_WITHIN_MS = 24 * 3_600_000;

export function openTransitions({ store, clock, flushed }: TransitionDeps): Transitions {
  const ends = new Set<Transition>();
  const batcher = new Batcher<Transition, ResultOutcome>({
    flush,
    ping: () => store.ping(),
    clock,
    flushed,
    max_rows: ROWS_MOST,
    max_waiting: 100_000,
  });
  return {
    get waiting() {
      return batcher.waiting;
    },
    jobs: () => [...ends].map(({ row }) => row.id),
    async add(transition) {
      if (transition.type !== 'start') ends.add(transition);
      try {
        return await batcher.add(transition, clock.now_ms() + COMMIT_WITHIN_MS);
      } finally {
        ends.delete(transition);
      }
    },
    close: (latest_ms) => batcher.close(latest_ms),
  };

  async function flush(batch: Transition[]): Promise<ResultOutcome[]> {
    const answers = new Map<Transition, ResultOutcome>();
    const note = (items: Transition[], outcomes: ResultOutcome[]) =>
      items.forEach((item, place) => answers.set(item, outcomes[place]!));
    const starts = batch.filter((item) => item.type === 'start');
    if (starts.length > 0) note(starts, await store.startJobs(starts.map(({ row }) => row)));
    const requeues = batch.filter((item) => item.type === 'requeue');
    if (requeues.length > 0) note(requeues, await store.requeueJobs(requeues.map(({ row }) => row)));
    const ends = batch.filter((item) => item.type === 'finish');
    if (ends.length > 0) note(ends, await store.finishJobs(ends.map(({ row }) => row)));
    return batch.map((item) => answers.get(item)!);
  }
}
