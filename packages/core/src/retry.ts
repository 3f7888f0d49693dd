/** How long a job waits before its next attempt: doubling from 100 ms to 10 s, half of it random. */
export const RETRY_FIRST_MS = 100;
export const RETRY_MOST_MS = 10_000;

/**
 * @param failures attempts that have failed so far, at least 1
 * @param random uniform in [0, 1)
 * @param asked_ms what the backend asked for by `Retry-After`, taken up to the most
 */
export function retryDelay(failures: number, random: number, asked_ms = 0): number {
  const full = Math.min(RETRY_MOST_MS, RETRY_FIRST_MS * 2 ** (Math.max(1, failures) - 1));
  return Math.max(Math.min(asked_ms, RETRY_MOST_MS), full / 2 + (full / 2) * random);
}
