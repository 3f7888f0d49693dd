import { describe, expect, test } from 'vitest';
import { ManualClock } from '@flotilla/core/testing';
import { createSlowdown, networkOf, type Slowdown } from './slowdown.ts';

/** How long the refusal waits: no time passes while it is found out. */
function delayOf(slowdown: Slowdown, clock: ManualClock, address: string): number {
  const before = clock.started.length;
  void slowdown.refused(address);
  return clock.started[before] ?? 0;
}

describe('refusals of one address', () => {
  test('wait 0, 100, 200, … ms, and two seconds at most', () => {
    const clock = new ManualClock();
    const slowdown = createSlowdown(clock);
    const delays = Array.from({ length: 30 }, () => delayOf(slowdown, clock, '10.0.0.1'));
    expect(delays.slice(0, 4)).toEqual([0, 100, 200, 300]);
    expect(delays.slice(19, 23)).toEqual([1900, 2000, 2000, 2000]);
  });

  test('are forgiven with time', () => {
    const clock = new ManualClock();
    const slowdown = createSlowdown(clock);
    for (let i = 0; i < 4; i++) void slowdown.refused('10.0.0.1');
    clock.advance(10_000);
    expect(delayOf(slowdown, clock, '10.0.0.1')).toBe(200);
    clock.advance(60_000);
    expect(delayOf(slowdown, clock, '10.0.0.1')).toBe(0);
  });

  test('do not slow down another address', () => {
    const clock = new ManualClock();
    const slowdown = createSlowdown(clock);
    for (let i = 0; i < 9; i++) void slowdown.refused('10.0.0.1');
    expect(delayOf(slowdown, clock, '10.0.0.2')).toBe(0);
  });
});

test('when too many answers wait, the next goes out at once and ends its connection', async () => {
  const clock = new ManualClock();
  const slowdown = createSlowdown(clock);
  for (let i = 0; i < 257; i++) void slowdown.refused('10.0.0.1');
  expect(clock.pending).toBe(256);
  expect(await slowdown.refused('10.0.0.1')).toEqual({ close: true });
  clock.advance(2000);
  const later = slowdown.refused('10.0.0.1');
  clock.advance(2000);
  expect(await later).toEqual({ close: false });
});

test.each([
  ['10.1.2.3', '10.1.2.3'],
  ['::ffff:10.1.2.3', '10.1.2.3'],
  ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2'],
  ['2001:db8:1:2::9', '2001:db8:1:2'],
  ['2001:0DB8::1', '2001:db8:0:0'],
  ['fe80::1%eth0', 'fe80:0:0:0'],
  ['::1', '0:0:0:0'],
  ['', ''],
])('%s belongs to %s', (address, network) => {
  expect(networkOf(address)).toBe(network);
});
