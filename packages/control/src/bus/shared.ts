import type { Bus, Log } from '@flotilla/core';
import type { Replica } from '../replica.ts';
import { createHints, type Hints } from './hints.ts';

/** What makes a replica one of several: the bus, what is told on it, and who else there is. */
export interface Shared {
  bus: Bus;
  hints: Hints;
  lives(replica: string): Promise<boolean>;
  others(): Iterable<string>;
  bumpAge_ms(): number;
}

export function sharedOver(bus: Bus, membership: Replica, log: Log): Shared {
  return {
    bus,
    hints: createHints(bus, log),
    lives: (other) => membership.lives(other),
    others: () => membership.others(),
    bumpAge_ms: () => membership.bumpAge_ms(),
  };
}
