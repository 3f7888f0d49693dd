import { ChurnMap, type Clock, type Timer } from '@flotilla/core';
import type { FromLink } from '../threads.ts';
import type { Attempt } from './attempt.ts';

/**
 * What the main thread is given for the journal, and when. Nobody waits for the disk, and most detached work is over, and
 * its result acknowledged, before the disk would be of use: what is short costs neither a message to the main thread, with
 * a copy of the answer, nor files that are made, synced and removed at once.
 *
 *     (none) ──began──▶ due in 1 s ──ended──▶ due in 100 ms ──its time, or no link──▶ told ──gone──▶ dropped
 *                            └─────── gone ────────┴──▶ (none)
 *
 * Without a link nobody will acknowledge anything soon: then results are told at once. A process that dies before one is
 * told has lost what it would have lost a moment earlier: the lease ends, and the job is done again.
 */
export interface Journaling {
  /** The main thread has it on its disk already. */
  restored(attempt: Attempt): void;
  began(attempt: Attempt): void;
  ended(attempt: Attempt): void;
  /** Nobody needs it any more. */
  gone(attempt: Attempt): void;
  joined(): void;
  left(): void;
  /** This thread ends, without a link. */
  stop(): void;
}

/** All that an entry without a result saves is the wait for the end of a lease, of many seconds. */
const BEGUN_AFTER_MS = 1000;
/** Longer than a store takes to commit, far shorter than what is worth a detached job. */
const ENDED_AFTER_MS = 100;

export function createJournaling(
  clock: Clock,
  tell: (message: Extract<FromLink, { type: 'journal_keep' | 'journal_drop' }>) => void,
): Journaling {
  /** In the order in which they are due: all of one kind wait equally long. */
  const begun = new ChurnMap<string, Due>();
  const ended = new ChurnMap<string, Due>();
  const told = new Set<string>();
  let timer: { at_ms: number; own: Timer } | null = null;
  let linked = false;
  return {
    restored: (attempt) => void told.add(nameOf(attempt)),
    began(attempt) {
      begun.set(nameOf(attempt), { attempt, at_ms: clock.now_ms() + BEGUN_AFTER_MS });
      watch();
    },
    ended(attempt) {
      begun.delete(nameOf(attempt));
      ended.set(nameOf(attempt), { attempt, at_ms: linked ? clock.now_ms() + ENDED_AFTER_MS : 0 });
      watch();
    },
    gone(attempt) {
      const name = nameOf(attempt);
      begun.delete(name);
      ended.delete(name);
      const { job, attempt: number } = attempt.offer;
      if (told.delete(name)) tell({ type: 'journal_drop', job, attempt: number });
    },
    joined() {
      linked = true;
    },
    left() {
      linked = false;
      tellUntil(ended, Infinity);
    },
    stop() {
      timer?.own.cancel();
    },
  };

  function tellDue(): void {
    timer = null;
    const now_ms = clock.now_ms();
    tellUntil(ended, now_ms);
    tellUntil(begun, now_ms);
    watch();
  }

  function tellUntil(due: ChurnMap<string, Due>, now_ms: number): void {
    for (const { attempt, at_ms } of due.values()) {
      if (at_ms > now_ms) return;
      const name = nameOf(attempt);
      due.delete(name);
      told.add(name);
      tell({ type: 'journal_keep', entry: attempt.journalEntry });
    }
  }

  /** One timer, which stays when what it was set for is gone: firing for nothing costs less than setting it each time. */
  function watch(): void {
    const at_ms = Math.min(firstOf(ended), firstOf(begun));
    if (at_ms === Infinity || (timer !== null && timer.at_ms <= at_ms)) return;
    timer?.own.cancel();
    timer = { at_ms, own: clock.after(Math.max(0, at_ms - clock.now_ms()), tellDue) };
  }
}

interface Due {
  readonly attempt: Attempt;
  readonly at_ms: number;
}

function firstOf(due: ChurnMap<string, Due>): number {
  for (const { at_ms } of due.values()) return at_ms;
  return Infinity;
}

function nameOf({ offer }: Attempt): string {
  return `${offer.attempt} ${offer.job}`;
}
