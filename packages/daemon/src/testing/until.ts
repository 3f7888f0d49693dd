import { vi } from 'vitest';

/** Waits until a check holds: long enough for a machine that runs other tests too, and looking often. */
export function until(check: () => unknown): Promise<unknown> {
  return vi.waitFor(check, { timeout: 10_000, interval: 10 });
}
