import type { Clock, Timer } from '@flotilla/core';
import type { Hints } from './hints.ts';

/** What happens often is told together: what came within a few milliseconds is one message. */
export interface GatheredHints {
  /** A job of this lane is ready. */
  lane(lane: string, order_key: number, priority: number): void;
  moved(job: string): void;
  ended(job: string): void;
  close(): void;
}

const GATHER_MS = 10;
/** More than this is found by the others' own look. */
const JOBS_MOST = 500;
const LANES_MOST = 50;

export function gatherHints(hints: Pick<Hints, 'tell'>, clock: Clock): GatheredHints {
  const lanes = new Map<string, { order_key: number; priority: number }>();
  const moved = new Set<string>();
  const ended = new Set<string>();
  let timer: Timer | null = null;
  return {
    lane(lane, order_key, priority) {
      const known = lanes.get(lane);
      if (known === undefined ? lanes.size < LANES_MOST : order_key < known.order_key) {
        lanes.set(lane, { order_key, priority });
      }
      tellSoon();
    },
    moved(job) {
      if (moved.size < JOBS_MOST) moved.add(job);
      tellSoon();
    },
    ended(job) {
      if (ended.size < JOBS_MOST) ended.add(job);
      tellSoon();
    },
    close: () => timer?.cancel(),
  };

  function tellSoon(): void {
    timer ??= clock.after(GATHER_MS, () => {
      timer = null;
      if (lanes.size > 0) {
        hints.tell({ type: 'lanes', lanes: [...lanes].map(([lane, at]) => ({ lane, ...at })) });
      }
      if (moved.size > 0 || ended.size > 0)
        hints.tell({ type: 'jobs', moved: [...moved], ended: [...ended] });
      lanes.clear();
      moved.clear();
      ended.clear();
    });
  }
}
