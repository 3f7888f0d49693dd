import type { Clock, Log, Random, RetentionLimits, Store } from '@flotilla/core';
import { type Repeating, repeat } from './repeat.ts';

const EVERY_MS = 4 * 60_000;
/** Replicas that started together do not sweep together. */
const JITTER = 0.25;
const BATCH = 1000;
/** One sweep deletes at most this many batches, so that a stop never waits long for it. */
const BATCHES_MOST = 20;
const DAY_MS = 86_400_000;

export interface RetentionDeps {
  store: Pick<Store, 'sweep'>;
  clock: Clock;
  random: Random;
  log: Log;
  job_retention_days: number;
  usage_retention_days: number;
  audit_retention_days: number;
}

/** Deletes what has outlived its time, a bounded batch at a time, beside the work and never inside it. */
export function startRetention(deps: RetentionDeps): Repeating {
  const { store, clock, random, log } = deps;
  const limits: RetentionLimits = {
    jobs_ms: deps.job_retention_days * DAY_MS,
    usage_ms: deps.usage_retention_days * DAY_MS,
    audit_ms: deps.audit_retention_days * DAY_MS,
    batch: BATCH,
  };
  return repeat(clock, () => EVERY_MS * (1 - JITTER + 2 * JITTER * random.next()), sweep);

  async function sweep(): Promise<void> {
    try {
      for (let batches = 0; batches < BATCHES_MOST; batches++) {
        const gone = await store.sweep(limits, clock.wall_ms());
        log.debug({ ...gone }, 'Swept.');
        if (Math.max(...Object.values(gone)) < BATCH) return;
      }
    } catch (error) {
      log.warn({ error }, 'What has outlived its time could not be deleted; it will be tried again.');
    }
  }
}
