import fc from 'fast-check';
import { expect, test } from 'vitest';
import { dialPatience, linkStood, nextReconnect, passAddress, RECONNECT_START } from './reconnect.ts';

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
  const tired = { attempts: 4, first: false, passed: 0 };
  const after = (stood_ms: number) => nextReconnect(nextReconnect(linkStood(tired, stood_ms), 1).state, 1);
  expect(after(59_999).delay_ms).toBe(5000);
  expect(after(60_000).delay_ms).toBe(1000);
});

test('of several addresses each is dialled once a round, and the pace between rounds is that of one address', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 1, max: 80 }), (addresses, dials) => {
      let state = RECONNECT_START;
      const waits: number[] = [];
      for (let dial = 0; dial < dials; dial++) {
        const passed = passAddress(state, addresses);
        const next = passed === undefined ? nextReconnect(state, 1) : { state: passed, delay_ms: 0 };
        state = next.state;
        waits.push(next.delay_ms);
      }
      const between = waits.filter((_, dial) => (dial + 1) % addresses === 0);
      expect(between).toEqual(delays(1, between.length));
      const within = waits.filter((_, dial) => (dial + 1) % addresses !== 0);
      expect(within.every((wait_ms) => wait_ms === 0)).toBe(true);
    }),
  );
});

test('a link, however short, ends the round: a control plane that drops nodes is dialled no faster for having more addresses', () => {
  const link_ms = fc.integer({ min: 0, max: 2999 });
  fc.assert(
    fc.property(fc.array(link_ms, { minLength: 6, maxLength: 20 }), fc.integer(), (links, seed) => {
      let state = RECONNECT_START;
      let waited_ms = 0;
      for (const [at, stood_ms] of links.entries()) {
        // Now and then an address of the round was passed before one let it in.
        if (((seed >> at) & 1) === 1) state = passAddress(state, 4) ?? state;
        const next = nextReconnect(linkStood(state, stood_ms), 1);
        state = next.state;
        waited_ms = next.delay_ms;
        expect(state.passed).toBe(0);
      }
      expect(waited_ms).toBe(5000);
    }),
  );
});

test('one address that says nothing holds a round for a second at first, never for longer than the whole, and the last has the whole', () => {
  const whole = fc.integer({ min: 100, max: 60_000 });
  fc.assert(
    fc.property(
      fc.nat(100),
      fc.integer({ min: 1, max: 16 }),
      fc.nat(15),
      whole,
      (attempts, addresses, at, whole_ms) => {
        const passed = at % addresses;
        const patience_ms = dialPatience({ attempts, first: false, passed }, addresses, whole_ms);
        expect(patience_ms).toBeLessThanOrEqual(whole_ms);
        if (passed === addresses - 1) expect(patience_ms).toBe(whole_ms);
        else if (attempts === 0) expect(patience_ms).toBe(Math.min(1000, whole_ms));
        else if (attempts > 6) expect(patience_ms).toBe(whole_ms);
      },
    ),
  );
});
