import type { Clock, JobRecord, Log, Settlement, Store } from '@flotilla/core';
import { Batcher } from './store/batcher.ts';
import type { Metrics } from './telemetry/metrics.ts';

/** A row of a job under way is worth having, not worth waiting for. */
const RECORD_OPEN_WITHIN_MS = 5000;
/** While requests end many at once: no client notices so short a wait, and far fewer statements carry the same rows. */
const SETTLE_PACE_MS = 3;

export interface Records {
  settlements: Batcher<Settlement, unknown>;
  /** A request has been open for long enough to have a row. */
  record: (job: JobRecord) => void;
  waiting: () => number;
  close(latest_ms: number): Promise<void>;
}

interface RecordsDeps {
  store: Store;
  metrics: Metrics;
  log: Log;
  clock: Clock;
}

/** The batched writers of requests: their ends, and those that take long while they run. */
export function openRecords({ store, metrics, log, clock }: RecordsDeps): Records {
  const common = { ping: () => store.ping(), clock, flushed: metrics.storeFlushed };
  const settlements = new Batcher<Settlement, unknown>({
    ...common,
    flush: (rows) => store.settle(rows),
    pace_ms: SETTLE_PACE_MS,
  });
  const open = new Batcher<JobRecord, unknown>({ ...common, flush: (rows) => store.recordOpen(rows) });
  return {
    settlements,
    record(job) {
      open.add(job, clock.now_ms() + RECORD_OPEN_WITHIN_MS).catch((error: unknown) => {
        log.debug({ error, job: job.id }, 'An open request has no row; its settlement will make it.');
      });
    },
    waiting: () => settlements.waiting + open.waiting,
    close: (latest_ms) =>
      Promise.all([settlements.close(latest_ms), open.close(latest_ms)]).then(() => undefined),
  };
}
