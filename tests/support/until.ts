import { setTimeout as pause } from 'node:timers/promises';

/**
 * Waits for a condition, looking again every few milliseconds; what happens in another process cannot be awaited. The
 * longer it takes the less often: a look is often a request, and they would take the time that the others need.
 * @returns the first value that is neither undefined, null nor false
 */
export async function until<T>(
  what: string,
  look: () => T | Promise<T>,
  within_ms = 30_000,
): Promise<NonNullable<Exclude<T, false>>> {
  const began = performance.now();
  const deadline = began + within_ms;
  for (;;) {
    const value = await look();
    if (value !== undefined && value !== null && value !== false)
      return value as NonNullable<Exclude<T, false>>;
    if (performance.now() > deadline) throw new Error(`Waited ${within_ms} ms in vain until ${what}.`);
    await pause(Math.min(5 + (performance.now() - began) / 10, 40));
  }
}
