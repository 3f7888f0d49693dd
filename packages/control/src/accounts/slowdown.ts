import { isIPv6 } from 'node:net';
import type { Clock } from '@flotilla/core';

/**
 * Refused credentials make their address wait: 0, 100, 200, … up to 2,000 ms before the answer. A credential that is
 * valid is never delayed, whatever its neighbours do: this is asked only once it was refused.
 *
 *     failures of an address: +1 a refusal, −1 every 5 s, forgotten at 0
 *
 * Credentials are 256 random bits and need no protection from guessing; this keeps a misconfigured fleet of clients
 * from filling the log and the processor. Bounded: the least recently failing address is forgotten when there are too
 * many, and when too many answers wait, the next goes out at once and closes its connection.
 */
export interface Slowdown {
  /** Counts a refusal. @returns when to answer it, and whether the connection is to end with it */
  refused(address: string): Promise<{ close: boolean }>;
}

const STEP_MS = 100;
const LONGEST_MS = 2000;
const DECAY_MS = 5000;
const ADDRESSES_MOST = 10_000;
const WAITING_MOST = 256;

interface Offender {
  failures: number;
  counted_ms: number;
}

export function createSlowdown(clock: Clock): Slowdown {
  const offenders = new Map<string, Offender>();
  let waiting = 0;

  return {
    refused(address) {
      const delay_ms = Math.min(LONGEST_MS, (count(networkOf(address)) - 1) * STEP_MS);
      if (delay_ms === 0) return Promise.resolve({ close: false });
      if (waiting >= WAITING_MOST) return Promise.resolve({ close: true });
      waiting += 1;
      return new Promise((resolve) => {
        clock.after(delay_ms, () => {
          waiting -= 1;
          resolve({ close: false });
        });
      });
    },
  };

  function count(network: string): number {
    const now_ms = clock.now_ms();
    const known = offenders.get(network);
    const steps = known === undefined ? 0 : Math.floor((now_ms - known.counted_ms) / DECAY_MS);
    const left = known === undefined ? 0 : Math.max(0, known.failures - steps);
    const failures = Math.min(left + 1, LONGEST_MS / STEP_MS + 1);
    // Taken out and put in again: the map's first entry is the one that has failed longest ago.
    offenders.delete(network);
    const oldest = offenders.size >= ADDRESSES_MOST ? offenders.keys().next().value : undefined;
    if (oldest !== undefined) offenders.delete(oldest);
    // Time that did not fill a step of decay counts on, else steady failures would never decay.
    const counted_ms = left === 0 || known === undefined ? now_ms : known.counted_ms + steps * DECAY_MS;
    offenders.set(network, { failures, counted_ms });
    return failures;
  }
}

/** What one owner has: an IPv4 address, or the /64 of an IPv6 one, of which a home has 2^64 addresses. */
export function networkOf(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
  if (mapped?.[1] !== undefined) return mapped[1];
  if (!isIPv6(address)) return address;
  const [bare = ''] = address.split('%');
  const [head = '', tail] = bare.split('::');
  const front = head === '' ? [] : head.split(':');
  const back = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros = tail === undefined ? 0 : 8 - front.length - back.length;
  const groups = [...front, ...Array.from({ length: Math.max(0, zeros) }, () => '0'), ...back];
  return groups
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(':');
}
