import { uptime } from 'node:os';

/**
 * Lease time: the larger of what `performance.now()` (stands still while the machine sleeps on some systems) and
 * `os.uptime()` (counts sleep) say has passed. Where uptime comes in whole seconds, its rounding is taken off, so that
 * it only speaks when the machine has really slept.
 *
 * Uptime is a file on Linux, whose reading takes up to 0.1 ms, and detached work asks for the time with each message. So
 * it is read again where the wall clock and the steady one have moved apart, as they do in a sleep, and once a second,
 * in case that somebody has set the wall clock back by just as much.
 */
export function openLeaseClock(
  steady_ms: () => number = () => performance.now(),
  uptime_s: () => number = uptime,
  wall_ms: () => number = () => Date.now(),
): () => number {
  const steady_start = steady_ms();
  const uptime_start = uptime_s();
  const rounding_ms = Number.isInteger(uptime_start) ? 1000 : 20;
  let read_at = steady_start;
  let apart = wall_ms() - steady_start;
  /** What uptime has counted, at `read_at`. */
  let by_uptime = 0;
  /** It never goes back: where uptime comes in whole seconds, a new reading may be behind what was made of the last. */
  let last = 0;
  return () => {
    const steady = steady_ms();
    const now_apart = wall_ms() - steady;
    if (Math.abs(now_apart - apart) > APART_MS || steady - read_at > READ_EVERY_MS) {
      by_uptime = (uptime_s() - uptime_start) * 1000 - rounding_ms;
      read_at = steady;
      apart = now_apart;
    }
    last = Math.max(last, steady - steady_start, by_uptime + (steady - read_at));
    return last;
  };
}

/** Some wall clocks move on by 16 ms at a time. */
const APART_MS = 50;
const READ_EVERY_MS = 1000;
