import fc from 'fast-check';
import { expect, test } from 'vitest';
import { linkStood, nextReconnect, RECONNECT_START } from './reconnect.ts';

const delays = (chance: number, count: number, pace: 'normal' | 'slow' = 'normal') => {
  let state = RECONNECT_START;
  return Array.from({ length: count }, () => {
    const next = nextReconnect(state, chance, pace);
    state = next.state;
    return next.delay_ms;
  });
};

test('the first delay lies within a random second, later ones under 1, 2, 4 and 5 s', () => {
  expect(delays(1, 7)).toEqual([1000, 1000, 2000, 4000, 5000, 5000, 5000]);
  fc.assert(
    fc.property(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (chance) => {
      for (const [index, delay_ms] of delays(chance, 8).entries()) {
        expect(delay_ms).toBe(chance * [1000, 1000, 2000, 4000, 5000, 5000, 5000, 5000][index]!);
      }
      for (const delay_ms of delays(chance, 3, 'slow')) {
        expect(delay_ms).toBeGreaterThanOrEqual(2500);
        expect(delay_ms).toBeLessThanOrEqual(5000);
      }
    }),
  );
});

test('only a link that stood for a minute starts the ladder again', () => {
  const tired = { attempts: 4 };
  expect(linkStood(tired, 59_999)).toBe(tired);
  expect(linkStood(tired, 60_000)).toEqual(RECONNECT_START);
});
