import type { Clock, HttpAgent, Random } from '@flotilla/core';
import { Agent } from 'undici';
import { systemClock, systemRandom } from '../clock.ts';
import { Connection, type Dial } from './connection.ts';
import { hostFacts } from './host-facts.ts';
import { openLeaseClock } from './lease-clock.ts';

/** What the link stands on: time, chance and the ways out. A simulation gives its own of each. */
export interface Machine {
  clock: Clock;
  random: Random;
  /** Counts the time that the machine sleeps as well. */
  lease_clock: () => number;
  dial: Dial;
  /** To the backends. */
  agent: HttpAgent & { destroy(): Promise<void> };
  host_facts: () => Record<string, number>;
}

export function thisMachine(connect_timeout_ms: number): Machine {
  return {
    clock: systemClock,
    random: systemRandom,
    lease_clock: openLeaseClock(),
    dial: (options, events) => new Connection(options, events),
    agent: new Agent({
      connect: { timeout: connect_timeout_ms },
      // Deadlines are the relay's own: exact, and one timer for all requests.
      headersTimeout: 0,
      bodyTimeout: 0,
      allowH2: false,
    }),
    host_facts: hostFacts,
  };
}
