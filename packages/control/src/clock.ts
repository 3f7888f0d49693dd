import { randomBytes, randomFillSync } from 'node:crypto';
import type { Clock, Random, Timer } from '@flotilla/core';

/** This machine's time and chance, for the ports through which everything else takes them. */
export const systemClock: Clock = {
  now_ms: () => performance.now(),
  wall_ms: () => Date.now(),
  after: (delay_ms, run) => (delay_ms > 0 ? timer(setTimeout(run, delay_ms)) : turnEnd(setImmediate(run))),
};

/** The same time; its timers do not keep the process alive: for what is repeated for as long as it runs. */
export const backgroundClock: Clock = {
  ...systemClock,
  after: (delay_ms, run) =>
    // A turn's end is soon enough for the process to live till then, and without it the loop would sleep over it.
    delay_ms > 0 ? timer(setTimeout(run, delay_ms).unref()) : turnEnd(setImmediate(run)),
};

export const systemRandom: Random = { next: Math.random, bytes: pooledBytes };

/** Ids take a few bytes for every request: asking the system for 4 KiB at a time costs a fortieth. */
const pool = Buffer.alloc(4096);
let pool_used = pool.length;

/** Bytes of the pool are given out once, as a copy, and wiped. */
function pooledBytes(length: number): Uint8Array {
  if (length > pool.length / 4) return randomBytes(length);
  if (pool_used + length > pool.length) {
    randomFillSync(pool);
    pool_used = 0;
  }
  const bytes = Uint8Array.prototype.slice.call(pool, pool_used, pool_used + length);
  pool.fill(0, pool_used, pool_used + length);
  pool_used += length;
  return bytes;
}

function timer(handle: NodeJS.Timeout): Timer {
  return { cancel: () => clearTimeout(handle) };
}

/** Node's shortest timer is one of 1 ms, in which a thousand things could be done. */
function turnEnd(handle: NodeJS.Immediate): Timer {
  return { cancel: () => clearImmediate(handle) };
}
