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

test('whatever came before, the first dial after a link of 3 s or more is within a random second, and those after it no faster than before', () => {
  const failed_dial = fc.constant(null);
  const link_of_ms = fc.integer({ min: 0, max: 120_000 });
  fc.assert(
    fc.property(fc.array(fc.oneof(failed_dial, link_of_ms)), (history) => {
      let state = RECONNECT_START;
      let slowest_ms = 0;
      for (const stood_ms of history) {
        if (stood_ms !== null) state = linkStood(state, stood_ms);
        const next = nextReconnect(state, 1);
        if (stood_ms !== null && stood_ms >= 60_000) slowest_ms = 0;
        if (stood_ms !== null && stood_ms >= 3000) expect(next.delay_ms).toBe(1000);
        else expect(next.delay_ms).toBeGreaterThanOrEqual(slowest_ms);
        slowest_ms = Math.max(slowest_ms, next.delay_ms);
        state = next.state;
      }
    }),
  );
});

test('a control plane that lets a node in and drops it at once is dialled at the slowest pace in the end', () => {
  let state = RECONNECT_START;
  let delay_ms = 0;
  for (let link = 0; link < 10; link++) ({ state, delay_ms } = nextReconnect(linkStood(state, 50), 1));
  expect(delay_ms).toBe(5000);
});

test('only a link that stood for a minute starts the ladder again', () => {
  const tired = { attempts: 4, first: false };
  const after = (stood_ms: number) => nextReconnect(nextReconnect(linkStood(tired, stood_ms), 1).state, 1);
  expect(after(59_999).delay_ms).toBe(5000);
  expect(after(60_000).delay_ms).toBe(1000);
});
