import type { Clock, Log, Store, Timer } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';

/**
 * Who waits to hear of jobs. Of what this process moves a job's listeners are told at once; what another replica moved,
 * and a hint that was lost, is found by one look at the store for all of them.
 *
 *     idle ──the first listener──▶ waiting ──5 s──▶ looking ──all have been told──▶ waiting ──none is left──▶ idle
 *
 * Moved by `watch` and what it returns, by its timer and by the store's answer.
 */
export interface Watchers {
  /**
   * @param key whose listener it is
   * @returns how to stop
   * @throws FlotillaError `rate_limited` where the key has its most, `unavailable` where there are too many of all keys
   */
  watch(job: string, key: string, hear: (news: News) => void): () => void;
  moved(job: string): void;
  close(): void;
}

/** `still`: a look has found nothing new. `failed`: the store could not be asked. */
export type News = { type: 'moved' } | { type: 'still' } | { type: 'failed'; error: unknown };

export interface WatchersDeps {
  clock: Clock;
  log: Log;
  store: Pick<Store, 'jobMarks'>;
}

/** An answer each: a key that opens more than it can read leaves no place to the others. */
export const OF_A_KEY_MOST = 100;
const LISTENERS_MOST = 10_000;
/** A listener's connection is kept by what it is told then, too. */
export const LOOK_EVERY_MS = 5000;
/** A statement each, and a turn of the event loop: who is told writes to a socket. */
const LOOK_AT_MOST = 1000;

interface Watched {
  listeners: Set<(news: News) => void>;
  /** As of the last look; undefined: there was none yet. */
  mark: string | undefined;
}

export function createWatchers({ clock, log, store }: WatchersDeps): Watchers {
  const watched = new Map<string, Watched>();
  const of_key = new Map<string, number>();
  let count = 0;
  let timer: Timer | null = null;
  let looking = false;
  let closed = false;
  return {
    watch(job, key, hear) {
      const of_this = of_key.get(key) ?? 0;
      if (of_this >= OF_A_KEY_MOST) throw tooManyOfKey();
      if (count >= LISTENERS_MOST) throw tooMany();
      const own = watched.get(job) ?? { listeners: new Set(), mark: undefined };
      watched.set(job, own);
      const listener = (news: News) => hear(news);
      own.listeners.add(listener);
      of_key.set(key, of_this + 1);
      count++;
      arm();
      return () => {
        if (!own.listeners.delete(listener)) return;
        count--;
        const left = of_key.get(key)! - 1;
        if (left > 0) of_key.set(key, left);
        else of_key.delete(key);
        if (own.listeners.size === 0) watched.delete(job);
        if (count === 0) disarm();
      };
    },
    moved: (job) => tell(job, { type: 'moved' }),
    close() {
      closed = true;
      disarm();
    },
  };

  function arm(): void {
    if (timer !== null || looking || closed || count === 0) return;
    timer = clock.after(LOOK_EVERY_MS, () => {
      timer = null;
      looking = true;
      void lookAtAll().finally(() => {
        looking = false;
        arm();
      });
    });
  }

  function disarm(): void {
    timer?.cancel();
    timer = null;
  }

  async function lookAtAll(): Promise<void> {
    const jobs = [...watched.keys()];
    for (let from = 0; from < jobs.length && !closed; from += LOOK_AT_MOST) {
      await lookAt(jobs.slice(from, from + LOOK_AT_MOST));
    }
  }

  async function lookAt(jobs: string[]): Promise<void> {
    let marks: Map<string, string>;
    try {
      marks = new Map((await store.jobMarks(jobs)).map(({ id, mark }) => [id, mark]));
    } catch (error) {
      log.debug({ error, jobs: jobs.length }, 'Jobs that somebody listens to could not be looked at.');
      for (const job of jobs) tell(job, { type: 'failed', error });
      return;
    }
    for (const job of jobs) {
      const own = watched.get(job);
      if (own === undefined) continue;
      // One that is not there, an attached one or one that was erased, is for who listens to find out.
      const mark = marks.get(job) ?? '';
      const same = mark === own.mark && mark !== '';
      own.mark = mark;
      tell(job, same ? { type: 'still' } : { type: 'moved' });
    }
  }

  function tell(job: string, news: News): void {
    for (const hear of watched.get(job)?.listeners ?? []) hear(news);
  }
}

function tooManyOfKey(): FlotillaError {
  const message =
    `This key listens to ${OF_A_KEY_MOST} jobs already, the most that one may at once: ` +
    'close some of its /events, or read the others with GET /api/v1/jobs.';
  return new FlotillaError('rate_limited', message, { retry_after_ms: LOOK_EVERY_MS });
}

function tooMany(): FlotillaError {
  return new FlotillaError('unavailable', 'Too many listen to jobs already; read the job itself.', {
    retry_after_ms: LOOK_EVERY_MS,
  });
}
