import fc from 'fast-check';
import { expect, test } from 'vitest';
import { periodStart } from '../packages/core/src/budget.ts';

test("core's months are those of the platform's calendar, for every day from 1970 to 2400", () => {
  const last_ms = Date.UTC(2400, 11, 31);
  for (let at = 0; at <= last_ms; at += 86_400_000) {
    const date = new Date(at);
    const start = Date.UTC(date.getUTCFullYear(), date.getUTCMonth());
    if (periodStart('month', at) !== start) expect([at, periodStart('month', at)]).toEqual([at, start]);
  }
  fc.assert(
    fc.property(fc.integer({ min: 0, max: last_ms }), (at) => {
      const date = new Date(at);
      expect(periodStart('month', at)).toBe(Date.UTC(date.getUTCFullYear(), date.getUTCMonth()));
    }),
  );
});
