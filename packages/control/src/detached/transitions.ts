import type { Clock, Finish, JobFence, Requeue, ResultOutcome, Store } from '@flotilla/core';
import { Batcher } from '../store/batcher.ts';

/**
 * The transitions of detached jobs on their way to the store: whatever queued while the last flush was in flight goes
 * in the next one, starts before requeues before ends, so that a job's own keep their order. Where a start and the end of
 * the same attempt are in one flush, the end says when it was started, and the start is no statement of its own: work that
 * is shorter than a flush moves its row once. A flush that may have been committed is sent again: the store answers
 * `duplicate` then.
 */
type Transition =
  | { type: 'start'; row: JobFence }
  | { type: 'requeue'; row: Requeue }
  | { type: 'finish'; row: Finish };

type Waiting = Transition & { readonly since_ms: number };

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

/** Their number is that of the slots. A row in a large statement costs half of one in a small one; results may be large. */
const ROWS_MOST = 500;
const BYTES_MOST = 4 * 1024 * 1024;
/** A node keeps what is not answered; nobody else waits. */
const COMMIT_WITHIN_MS = 24 * 3_600_000;

export function openTransitions({ store, clock, flushed }: TransitionDeps): Transitions {
  const batcher = new Batcher<Waiting, ResultOutcome>({
    flush,
    ping: () => store.ping(),
    clock,
    flushed,
    max_rows: ROWS_MOST,
    weigh: {
      bytesOf: ({ type, row }) => (type === 'finish' ? (row.result?.length ?? 0) : 0),
      max_bytes: BYTES_MOST,
    },
    max_waiting: 100_000,
    // The first start of a burst would go alone, and all that follows it in the same turn would wait for its commit.
    gather: () => new Promise((over) => void clock.after(0, over)),
  });
  return {
    get waiting() {
      return batcher.waiting;
    },
    jobs: () => batcher.rows().flatMap(({ type, row }) => (type === 'start' ? [] : [row.id])),
    add(transition) {
      const now_ms = clock.now_ms();
      return batcher.add({ ...transition, since_ms: now_ms }, now_ms + COMMIT_WITHIN_MS);
    },
    close: (latest_ms) => batcher.close(latest_ms),
  };

  async function flush(batch: Waiting[]): Promise<ResultOutcome[]> {
    const answers = new Map<Waiting, ResultOutcome>();
    const note = (items: Waiting[], outcomes: ResultOutcome[]) =>
      items.forEach((item, place) => answers.set(item, outcomes[place]!));
    const ends = batch.filter((item) => item.type === 'finish');
    const ended = new Map(ends.map((item) => [fenceText(item.row), item]));
    const starts = batch.filter((item) => item.type === 'start');
    const apart = starts.filter(({ row }) => !ended.has(fenceText(row)));
    if (apart.length > 0) note(apart, await store.startJobs(apart.map(({ row }) => row)));
    const requeues = batch.filter((item) => item.type === 'requeue');
    if (requeues.length > 0) note(requeues, await store.requeueJobs(requeues.map(({ row }) => row)));
    if (ends.length > 0) {
      const started = new Map(starts.map((item) => [fenceText(item.row), item]));
      const rows = ends.map(({ row }) => {
        const start = started.get(fenceText(row));
        if (start === undefined) return row;
        return { ...row, started_ago_ms: Math.max(0, Math.round(clock.now_ms() - start.since_ms)) };
      });
      note(ends, await store.finishJobs(rows));
    }
    for (const item of starts) {
      const end = ended.get(fenceText(item.row));
      // Of an end that was refused it is not known whether the attempt was this one's.
      if (end !== undefined) answers.set(item, answers.get(end) === 'accepted' ? 'accepted' : 'stale');
    }
    return batch.map((item) => answers.get(item)!);
  }
}

function fenceText({ id, attempt, node, epoch }: JobFence): string {
  return `${id} ${attempt} ${node} ${epoch}`;
}
