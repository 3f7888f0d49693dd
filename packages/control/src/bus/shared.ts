import type { Bus, Clock, Log } from '@flotilla/core';
import type { Replica } from '../replica.ts';
import { createHints, type Hints } from './hints.ts';
import { createQuestions, type Questions } from './questions.ts';

/** What makes a replica one of several: the bus, what is told on it, and who else there is. */
export interface Shared {
  bus: Bus;
  hints: Hints;
  questions: Questions;
  lives(replica: string): Promise<boolean>;
  others(): Iterable<string>;
}

export function sharedOver(bus: Bus, membership: Replica, clock: Clock, log: Log): Shared {
  return {
    bus,
    hints: createHints(bus, log),
    questions: createQuestions(bus, clock, log),
    lives: (other) => membership.lives(other),
    others: () => membership.others(),
  };
}
