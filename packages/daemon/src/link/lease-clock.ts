import { uptime } from 'node:os';

/**
 * Lease time: the larger of what `performance.now()` (stands still while the machine sleeps on some systems) and
 * `os.uptime()` (counts sleep) say has passed. Where uptime comes in whole seconds, its rounding is taken off, so that
 * it only speaks when the machine has really slept.
 *
 * Costs about 12 µs a reading on Linux (a file is read): for beats, not for requests.
 */
export function openLeaseClock(
  steady_ms: () => number = () => performance.now(),
  uptime_s: () => number = uptime,
): () => number {
  const steady_start = steady_ms();
  const uptime_start = uptime_s();
  const rounding_ms = Number.isInteger(uptime_start) ? 1000 : 20;
  return () => {
    const by_steady = steady_ms() - steady_start;
    const by_uptime = (uptime_s() - uptime_start) * 1000 - rounding_ms;
    return Math.max(by_steady, by_uptime);
  };
}
