import {
  askDraw,
  type Clock,
  type Draw,
  type Drawn,
  type HeldShare,
  type Lack,
  type Log,
  type Store,
  takeDrawn,
  tickShare,
  type Timer,
  undrawn,
} from '@flotilla/core';
import type { FlotillaError } from '@flotilla/protocol';
import type { Hints } from '../bus/hints.ts';
import { storeAway } from './limit-answers.ts';

/**
 * What draws shares of limits from the store: all that is due in one transaction, one after the other.
 *
 *     at rest ──due()──▶ due ──draw──▶ drawn ──tick: nothing held, nothing to tell──▶ at rest
 *                         ▲              │
 *                         └──tick, hint──┘
 *
 * A tick comes every 500 ms while anything is held, more often while a request waits for what others hold. A draw that
 * finds too little makes the store count up its `recall`, and the others are told of it on the bus, or see it at their
 * own tick. They give back what they do not need and say so, and it draws again.
 */
export interface Draws {
  due(share: HeldShare): void;
  /** Something has changed that can be told at the next tick. */
  later(): void;
  /** Resolves when the store has been told of it and has answered. @throws FlotillaError `unavailable` */
  told(share: HeldShare): Promise<void>;
  /** Gives back what is free; what is busy goes with the row of this replica. @param latest_ms by the clock's `now_ms` */
  close(latest_ms: number): Promise<void>;
}

export interface DrawsDeps {
  clock: Clock;
  log: Log;
  store: Pick<Store, 'drawLimits'>;
  replica: string;
  hints: Pick<Hints, 'tell' | 'on' | 'onLost'>;
  find(key: string, kind: string): HeldShare | undefined;
  /** All that are not at rest. */
  awake(): Iterable<HeldShare>;
  /** Whether a request waits. */
  waits(): boolean;
  lackOf(share: HeldShare, free: number): Lack;
  /** All of one draw have been drawn. */
  settled(keys: ReadonlySet<string>): void;
}

const TICK_MS = 500;
const WAITING_TICK_MS = 200;
const DRAWS_MOST = 500;

export function createDraws(deps: DrawsDeps): Draws {
  const { clock, log, store, replica, hints } = deps;
  const due = new Set<HeldShare>();
  const asked: { resolve: () => void; reject: (error: FlotillaError) => void }[] = [];
  let running: Promise<void> | null = null;
  let timer: Timer | null = null;
  let timer_ms = 0;
  let failing = false;
  let closed = false;

  hints.on('recall', ({ limits }) => {
    for (const { key, kind, recall } of limits) {
      const share = deps.find(key, kind);
      if (share === undefined || recall <= share.answers || share.told.held === 0) continue;
      share.recall = Math.max(share.recall, recall);
      drawSoon(share);
    }
  });
  hints.on('freed', ({ limits }) => {
    for (const { key, kind } of limits) {
      const share = deps.find(key, kind);
      if (share === undefined) continue;
      share.denied = null;
      if (share.recalled > 0) drawSoon(share);
    }
  });
  return {
    due: drawSoon,
    later: tickSoon,
    told,
    close,
  };

  function drawSoon(share: HeldShare): void {
    if (closed) return;
    due.add(share);
    if (!failing) running ??= run();
    tickSoon();
  }

  function told(share: HeldShare): Promise<void> {
    if (closed) return Promise.reject(storeAway());
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    asked.push({ resolve, reject });
    due.add(share);
    running ??= run();
    return promise;
  }

  /** What comes due while one draw is in flight is in the next. */
  async function run(): Promise<void> {
    // Whoever else comes due in this turn of the loop goes along.
    await Promise.resolve();
    do {
      const batch = [...due].slice(0, DRAWS_MOST);
      for (const share of batch) due.delete(share);
      const hearers = asked.splice(0);
      failing = !(await draw(batch));
      for (const { resolve, reject } of hearers) {
        if (failing) reject(storeAway());
        else resolve();
      }
    } while (due.size > 0 && !failing);
    running = null;
    tickSoon();
  }

  /** @returns false where the store did not answer */
  async function draw(batch: HeldShare[]): Promise<boolean> {
    const draws = batch.map((share) => askDraw(share, (free) => deps.lackOf(share, free)));
    let answers: Drawn[];
    try {
      const answered = await store.drawLimits(replica, draws);
      if (answered === null) throw new Error('This replica was taken for dead.');
      answers = answered;
    } catch (error) {
      if (!failing) log.warn({ error }, 'Limits that are shared with other replicas cannot be drawn.');
      for (const [index, share] of batch.entries()) undrawn(share, draws[index]!);
      return false;
    }
    take(batch, draws, answers);
    return true;
  }

  function take(batch: HeldShare[], draws: Draw[], answers: Drawn[]): void {
    const recalls: { key: string; kind: HeldShare['kind']; recall: number }[] = [];
    const freed: { key: string; kind: HeldShare['kind'] }[] = [];
    const keys = new Set<string>();
    for (const [index, share] of batch.entries()) {
      const draw = draws[index]!;
      const drawn = answers[index]!;
      const { key, kind, recall } = drawn;
      // Somebody else waits for it, or was refused a moment ago.
      const gave = draw.answers > share.answers || (share.contended > 0 && draw.held < share.told.held);
      takeDrawn(share, draw, drawn, clock.now_ms());
      keys.add(key);
      if (gave) freed.push({ key, kind });
      if (drawn.verdict === 'recalled' && draw.recalled === 0) recalls.push({ key, kind, recall });
      // Somebody lacks it, whose hint was lost or is on its way.
      if (share.recall > share.answers) due.add(share);
    }
    // Whoever is answered must find the store as it was answered: it is by now.
    if (freed.length > 0) hints.tell({ type: 'freed', limits: freed });
    if (recalls.length > 0) hints.tell({ type: 'recall', limits: recalls });
    deps.settled(keys);
  }

  function tickSoon(): void {
    const delay_ms = deps.waits() ? WAITING_TICK_MS : TICK_MS;
    if (closed || (timer !== null && timer_ms <= delay_ms)) return;
    timer?.cancel();
    timer_ms = delay_ms;
    timer = clock.after(delay_ms, tick);
  }

  function tick(): void {
    timer = null;
    let any = false;
    for (const share of deps.awake()) {
      any = true;
      if (tickShare(share) || share.recalled > 0) due.add(share);
    }
    if (due.size > 0) running ??= run();
    if (any || due.size > 0) tickSoon();
  }

  async function close(latest_ms: number): Promise<void> {
    closed = true;
    timer?.cancel();
    const last = (async () => {
      await running;
      for (const share of deps.awake()) {
        share.wanted = share.wanted_before = 0;
        due.add(share);
      }
      const batch = [...due];
      if (batch.length > 0 && !failing) await draw(batch);
    })();
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const limit = clock.after(Math.max(0, latest_ms - clock.now_ms()), resolve);
    await Promise.race([last, late]);
    limit.cancel();
  }
}
