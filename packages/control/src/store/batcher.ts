import type { Clock, Timer } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import { failureKind } from './failure.ts';

/**
 * Rows that many callers add one by one, written together: a flush takes whatever queued while the last one was in
 * flight. There is no timer (unless it is asked to `gather`, or keeps a `pace_ms` after a larger flush), so a lone row
 * waits for nothing, and under load a statement carries hundreds.
 *
 *     idle ──add──▶ flushing ──committed──▶ flushing what queued meanwhile, or idle
 *                      │  ▲
 *            transient │  └── back-off over (50 ms, doubling to 1 s)
 *                      ▼
 *     idle ──suspect──▶ backing off: rows keep their places; with none left it pings until the store answers
 *
 * A flush that fails for its data is repeated row by row, so that one bad row fails alone. Hence `flush` must be safe to
 * repeat with rows that it may have committed. A row's promise resolves once committed; it rejects with the row's own
 * fault, or with `unavailable` when the batcher is full, closed, or the row's deadline has passed, which leaves open
 * whether the row was committed. When the process crashes, exactly the rows that were not yet resolved are in doubt.
 */
export interface BatcherOptions<Row, Result> {
  /** Writes all rows or none, and answers in their order, where there are answers. */
  flush(rows: Row[]): Promise<readonly Result[] | void>;
  /** Asks whether the store is back, when no row waits to find out. */
  ping(): Promise<void>;
  clock: Clock;
  max_rows?: number;
  /** What a row brings along, and how much of that goes in one flush; a row that is larger goes alone. */
  weigh?: { bytesOf(row: Row): number; max_bytes: number };
  max_waiting?: number;
  /** The first row of a burst waits for this, where those that follow at once are to be in the same flush. */
  gather?(): Promise<void>;
  /**
   * While several rows come together, a flush begins this long after the one before it at the earliest: a statement with
   * few rows costs the store, and us, more than the rows in it.
   */
  pace_ms?: number;
  flushed?(report: { rows: number; duration_ms: number; failed: boolean }): void;
}

interface Entry<Row, Result> {
  readonly row: Row;
  deadline_ms: number;
  settled: boolean;
  resolve(result: Result): void;
  reject(error: unknown): void;
}

const MAX_ROWS = 300;
/** A flush of so many tells that requests end faster than statements do. */
const PACED_FROM_ROWS = 4;
const MAX_WAITING = 10_000;
const FIRST_BACK_OFF_MS = 50;
const LONGEST_BACK_OFF_MS = 1_000;
/** A flush that has not come back for this long counts as failing: a server can vanish without an error. */
const STALLED_MS = 500;
/** A deadline further away is looked at again then: no clock has to keep timers for days. */
const LONGEST_WATCH_MS = 60_000;

export class Batcher<Row, Result> {
  readonly #options: BatcherOptions<Row, Result>;
  readonly #max_rows: number;
  readonly #max_waiting: number;
  #queue: Entry<Row, Result>[] = [];
  #flying: Entry<Row, Result>[] = [];
  #running: Promise<void> | undefined;
  #closed = false;
  #waiting = 0;
  #failures = 0;
  #last: Promise<Result> = Promise.resolve(undefined as Result);
  #first_failure_ms: number | null = null;
  #flight_since_ms: number | null = null;
  #last_flush = { rows: 0, at_ms: 0 };
  #watchdog: { timer: Timer; at_ms: number } | undefined;

  constructor(options: BatcherOptions<Row, Result>) {
    this.#options = options;
    this.#max_rows = options.max_rows ?? MAX_ROWS;
    this.#max_waiting = options.max_waiting ?? MAX_WAITING;
  }

  /** Rows neither committed nor refused yet. */
  get waiting(): number {
    return this.#waiting;
  }

  rows(): Row[] {
    return [...this.#flying, ...this.#queue].filter((entry) => !entry.settled).map(({ row }) => row);
  }

  /** Since when the store has not taken a row, by the clock's `now_ms`; null: it works, or nothing was tried. */
  get failing_since_ms(): number | null {
    if (this.#first_failure_ms !== null) return this.#first_failure_ms;
    const since = this.#flight_since_ms;
    return since !== null && this.#options.clock.now_ms() - since >= STALLED_MS ? since : null;
  }

  /** @param deadline_ms by the clock's `now_ms`: the row is refused if it is not committed by then */
  add(row: Row, deadline_ms: number): Promise<Result> {
    if (this.#closed) return Promise.reject(unavailable('The control plane is stopping.'));
    if (this.#waiting >= this.#max_waiting) {
      return Promise.reject(unavailable('Too many records wait for the store already.'));
    }
    this.#last = new Promise((resolve, reject) => {
      this.#waiting += 1;
      this.#queue.push({ row, deadline_ms, settled: false, resolve, reject });
      this.#watch(deadline_ms);
      this.#running ??= this.#run();
    });
    return this.#last;
  }

  /** Resolves when the rows that were added before this are committed, or refused: they are written in their order. */
  written(): Promise<unknown> {
    return this.#last.catch(() => undefined);
  }

  /**
   * Somebody else found the store failing. Without rows nobody would try it here, and the next ones would be taken in
   * good faith: so it counts as failing from now until it answers.
   */
  suspect(): void {
    // Who is at work finds out by itself.
    if (this.#closed || this.#running !== undefined) return;
    this.#failures = 1;
    this.#first_failure_ms = this.#options.clock.now_ms();
    this.#running = this.#run();
  }

  /**
   * Takes no more rows; resolves when those that wait are committed or past their deadlines.
   * @param latest_ms by the clock's `now_ms`: no deadline is later from now on
   */
  async close(latest_ms: number): Promise<void> {
    this.#closed = true;
    for (const entry of [...this.#flying, ...this.#queue]) {
      entry.deadline_ms = Math.min(entry.deadline_ms, latest_ms);
    }
    if (this.#waiting > 0) this.#watch(latest_ms);
    await this.#running;
  }

  async #run(): Promise<void> {
    const options = this.#options;
    if (options.gather !== undefined && this.#failures === 0) await options.gather();
    while (this.#queue.length > 0 || (this.#failures > 0 && !this.#closed)) {
      const pause_ms = this.#pause_ms();
      if (pause_ms > 0) await new Promise<void>((over) => void options.clock.after(pause_ms, over));
      try {
        await this.#flushNext();
        this.#failures = 0;
        this.#first_failure_ms = null;
        this.#flight_since_ms = null;
      } catch {
        this.#failures += 1;
        this.#first_failure_ms ??= this.#flight_since_ms ?? this.#options.clock.now_ms();
        this.#flight_since_ms = null;
        await this.#backOff();
      }
    }
    this.#running = undefined;
    this.#watchdog?.timer.cancel();
    this.#watchdog = undefined;
  }

  #pause_ms(): number {
    const { pace_ms, clock } = this.#options;
    const { rows } = this.#last_flush;
    if (
      pace_ms === undefined ||
      rows < PACED_FROM_ROWS ||
      this.#queue.length >= this.#max_rows ||
      this.#closed
    )
      return 0;
    return this.#last_flush.at_ms + pace_ms - clock.now_ms();
  }

  /** @throws what is transient, having put back what is still to be written */
  async #flushNext(): Promise<void> {
    if (this.#queue.length === 0) return this.#options.ping();
    this.#flying = this.#queue.splice(0, this.#nextCount());
    try {
      await this.#flush(this.#flying).catch((error: unknown) => {
        if (failureKind(error) === 'transient') throw error;
        return this.#flushOneByOne(this.#flying, error);
      });
    } catch (error) {
      this.#queue = [...this.#flying.filter((entry) => !entry.settled), ...this.#queue];
      throw error;
    } finally {
      this.#flying = [];
    }
  }

  #nextCount(): number {
    const { weigh } = this.#options;
    const most = Math.min(this.#queue.length, this.#max_rows);
    if (weigh === undefined) return most;
    let bytes = weigh.bytesOf(this.#queue[0]!.row);
    let count = 1;
    for (; count < most; count++) {
      bytes += weigh.bytesOf(this.#queue[count]!.row);
      if (bytes > weigh.max_bytes) break;
    }
    return count;
  }

  /** @param error of all rows together; the fault of a row that was alone */
  async #flushOneByOne(entries: Entry<Row, Result>[], error: unknown): Promise<void> {
    const [only, ...others] = entries;
    if (only !== undefined && others.length === 0) return this.#reject(only, error);
    for (const entry of entries.filter(({ settled }) => !settled)) {
      await this.#flush([entry]).catch((fault: unknown) => {
        if (failureKind(fault) === 'transient') throw fault;
        this.#reject(entry, fault);
      });
    }
  }

  async #flush(entries: Entry<Row, Result>[]): Promise<void> {
    const { clock } = this.#options;
    const started_ms = clock.now_ms();
    this.#flight_since_ms = started_ms;
    this.#last_flush = { rows: entries.length, at_ms: started_ms };
    let failed = true;
    try {
      const results = (await this.#options.flush(entries.map(({ row }) => row))) ?? [];
      failed = false;
      entries.forEach((entry, index) => this.#resolve(entry, results[index] as Result));
    } finally {
      this.#options.flushed?.({ rows: entries.length, duration_ms: clock.now_ms() - started_ms, failed });
    }
  }

  #resolve(entry: Entry<Row, Result>, result: Result): void {
    if (this.#settle(entry)) entry.resolve(result);
  }

  #reject(entry: Entry<Row, Result>, error: unknown): void {
    if (this.#settle(entry)) entry.reject(error);
  }

  #settle(entry: Entry<Row, Result>): boolean {
    if (entry.settled) return false;
    entry.settled = true;
    this.#waiting -= 1;
    return true;
  }

  #backOff(): Promise<void> {
    const delay_ms = Math.min(LONGEST_BACK_OFF_MS, FIRST_BACK_OFF_MS * 2 ** (this.#failures - 1));
    return new Promise((over) => void this.#options.clock.after(delay_ms, over));
  }

  /** One timer, at the earliest deadline: most are never reached. */
  #watch(deadline_ms: number): void {
    if (this.#watchdog !== undefined && this.#watchdog.at_ms <= deadline_ms) return;
    this.#watchdog?.timer.cancel();
    const { clock } = this.#options;
    const delay_ms = Math.min(Math.max(0, deadline_ms - clock.now_ms()), LONGEST_WATCH_MS);
    const at_ms = clock.now_ms() + delay_ms;
    this.#watchdog = { timer: clock.after(delay_ms, () => this.#refuseOverdue()), at_ms };
  }

  #refuseOverdue(): void {
    this.#watchdog = undefined;
    const now_ms = this.#options.clock.now_ms();
    let earliest_ms = Infinity;
    for (const entry of [...this.#flying, ...this.#queue]) {
      if (entry.settled) continue;
      if (entry.deadline_ms <= now_ms)
        this.#reject(entry, unavailable('The record was not committed in time.'));
      else earliest_ms = Math.min(earliest_ms, entry.deadline_ms);
    }
    this.#queue = this.#queue.filter((entry) => !entry.settled);
    if (earliest_ms < Infinity) this.#watch(earliest_ms);
  }
}

function unavailable(message: string): FlotillaError {
  return new FlotillaError('unavailable', message);
}
