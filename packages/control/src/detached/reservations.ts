import {
  ChurnMap,
  type Clock,
  type KeyRecord,
  type Log,
  type Reservation,
  type Store,
  type UsageRecord,
  type UsageWord,
} from '@flotilla/core';
import type { TokenUsage } from '@flotilla/protocol';
import type { Admission } from '../accounts/admission.ts';
import type { Limits } from '../accounts/limits.ts';
import { Batcher } from '../store/batcher.ts';

/**
 * What detached jobs cost their keys, on this replica.
 *
 *     accepted here, or open at the start ──▶ held ──its usage row──▶ settled ──the node's late word──▶ corrected
 *
 * Moved by whoever accepts, by the ends of jobs, and by nodes. The usage row is the account (decision 015), so memory
 * counts what the row says, and where that is corrected the difference. Rows are read and corrected by one writer, a
 * batch at a time, so that no correction falls between a reading and what is made of it, to be counted twice. On a crash
 * all of it is lost, and read anew at the next start.
 */
export interface Reservations {
  /** A job was accepted, with what it reserves. */
  hold(job: string, admission: Admission): void;
  holds(job: string): boolean;
  /** Jobs that hold something. */
  jobs(): Iterable<string>;
  /**
   * It has ended: what it has cost takes the place of what was reserved for it.
   * @returns false where that is known already: one end can be heard of in two ways
   */
  settle(usage: UsageRecord): boolean;
  /**
   * Looks whether these have ended, and tells of those that have.
   * @param ours this process has ended them, and has not seen their rows
   */
  learn(jobs: Iterable<string>, ours?: boolean): Promise<void>;
  /** The word of a node that comes when its job may have ended already. */
  told(word: UsageWord): void;
  readonly waiting: number;
  close(latest_ms: number): Promise<void>;
}

export interface ReservationsDeps {
  clock: Clock;
  log: Log;
  store: Pick<Store, 'findUsage' | 'correctUsage' | 'ping'>;
  limits: Pick<Limits, 'restore' | 'settled'>;
  /** What jobs that were open at the start had reserved. */
  restored: readonly Reservation[];
  /** Undefined: it is no more, and nobody can spend beyond its budget. */
  keyOf(id: string): KeyRecord | undefined;
  flushed: (report: { rows: number; duration_ms: number; failed: boolean }) => void;
  /** This process works on it, or has somebody work on it. */
  works(job: string): boolean;
  /** An end that was not heard of. */
  ended(usage: UsageRecord): void;
}

/** More open jobs than this reserve nothing: what they cost is counted at their end alone. */
export const RESERVATIONS_MOST = 100_000;
/** The second word of an end comes within a statement or two of the first, not thousands of jobs later. */
const ENDED_MOST = 10_000;
const ROWS_MOST = 1000;
/** A client may wait for it. */
const LEARN_WITHIN_MS = 15_000;
/** Nobody waits for it. */
const CORRECT_WITHIN_MS = 24 * 3_600_000;

interface Look {
  readonly job: string;
  readonly word: UsageWord | null;
  /** Kept from the first try on: a correction whose answer was lost is counted all the same. */
  before?: UsageRecord | undefined;
}

/** Undefined: its job has not ended, or never was. */
interface Found {
  before: UsageRecord | undefined;
  after: UsageRecord | undefined;
}

export function createReservations(deps: ReservationsDeps): Reservations {
  const { clock, log, store, limits } = deps;
  const admissions = new ChurnMap<string, Admission>();
  /** The last ones that were settled. */
  const ended = new Set<string>();
  const looks = new Batcher<Look, Found>({
    flush: look,
    ping: () => store.ping(),
    clock,
    flushed: deps.flushed,
    max_rows: ROWS_MOST,
  });
  for (const reservation of deps.restored) {
    const key = deps.keyOf(reservation.key);
    if (key !== undefined) admissions.set(reservation.job, limits.restore(key, reservation));
  }
  return {
    hold(job, admission) {
      // Another may have claimed and ended it, or its client cancelled it, before its acceptance was heard of here.
      if (!ended.has(job) && admissions.size < RESERVATIONS_MOST) admissions.set(job, admission);
      else {
        admission.settle(NOTHING, clock.wall_ms());
        admission.recorded();
      }
    },
    holds: (job) => admissions.has(job),
    jobs: () => admissions.keys(),
    settle,
    async learn(jobs, ours = false) {
      const all = [...jobs];
      while (all.length > 0) {
        const some = all.splice(-ROWS_MOST);
        await Promise.all(
          some.map(async (job) => {
            const { before } = await looks.add({ job, word: null }, clock.now_ms() + LEARN_WITHIN_MS);
            if (before !== undefined && (ours || isUnheard(job))) deps.ended(before);
          }),
        );
      }
    },
    told(word) {
      looks.add({ job: word.job, word }, clock.now_ms() + CORRECT_WITHIN_MS).then(
        ({ before, after }) => {
          if (before === undefined || after === undefined) return;
          // Else what tells of the end later would count the corrected row, and the difference twice.
          if (isUnheard(word.job)) deps.ended(before);
          limits.settled(after, before);
        },
        (error: unknown) => log.debug({ error, job: word.job }, 'What a job has used stays an estimate.'),
      );
    },
    get waiting() {
      return looks.waiting;
    },
    close: (latest_ms) => looks.close(latest_ms),
  };

  function settle(usage: UsageRecord): boolean {
    if (ended.has(usage.job)) return false;
    ended.add(usage.job);
    if (ended.size > ENDED_MOST) ended.delete(ended.values().next().value!);
    const admission = admissions.get(usage.job);
    admissions.delete(usage.job);
    if (admission === undefined) limits.settled(usage);
    else {
      admission.settle(usage, usage.created_at);
      admission.recorded();
    }
    return true;
  }

  function isUnheard(job: string): boolean {
    return admissions.has(job) || deps.works(job);
  }

  async function look(batch: Look[]): Promise<Found[]> {
    const rows = await rowsOf(batch);
    // After an answer that was lost the row may be corrected already: what was read before it holds, for all who ask.
    for (const { job, before } of batch) if (before !== undefined) rows.set(job, before);
    const words = new Map<string, Look>();
    for (const one of batch) {
      one.before = rows.get(one.job);
      // Of an attempt's words the first counts; one of an older attempt must not take the place of the right one.
      if (isOfItsRow(one) && !words.has(one.job)) words.set(one.job, one);
    }
    const late = [...words.values()];
    await store.correctUsage(late.map(({ word }) => word!));
    const corrected = await rowsOf(late);
    return batch.map((one) => {
      const { job, before } = one;
      return { before, after: words.get(job) === one ? corrected.get(job) : before };
    });
  }

  async function rowsOf(some: readonly Look[]): Promise<Map<string, UsageRecord>> {
    const rows = await store.findUsage([...new Set(some.map(({ job }) => job))]);
    return new Map(rows.map((row) => [row.job, row]));
  }
}

function isOfItsRow({ word, before }: Look): boolean {
  if (word === null || before === undefined) return false;
  return word.attempt === before.attempts && word.node === (before.node ?? before.provider);
}

const NOTHING: TokenUsage = { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, estimated: true };
