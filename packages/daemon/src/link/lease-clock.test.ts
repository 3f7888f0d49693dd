import { timings } from '@flotilla/core';
import { expect, test } from 'vitest';
import { ManualClock } from '@flotilla/core/testing';
import { Guard } from './guard.ts';
import { fenceIn, NO_LEASE, renewLease } from './lease.ts';
import { openLeaseClock } from './lease-clock.ts';

test.each([
  ['hundredths', 1234.56, 0.02],
  ['whole seconds', 1234, 1],
])('lease time counts sleep, with uptime in %s', (_unit, start_s, rounding_s) => {
  let steady = 500;
  let uptime = start_s;
  let wall = 1_790_000_000_000;
  let readings = 0;
  const clock = openLeaseClock(
    () => steady,
    () => {
      readings++;
      return uptime;
    },
    () => wall,
  );
  steady += 3000;
  wall += 3000;
  uptime += 3 + rounding_s / 2;
  expect(clock()).toBe(3000);
  // Ten minutes of sleep that the steady clock did not see.
  uptime += 600;
  wall += 600_000;
  expect(clock()).toBeGreaterThan(600_000);
  expect(clock()).toBeLessThanOrEqual(603_000);
  const before = readings;
  for (let times = 0; times < 500; times++) {
    steady += 1;
    wall += 1;
    clock();
  }
  expect(readings).toBe(before);
  expect(clock()).toBeGreaterThan(600_500);
  // Another sleep, of which the wall clock says nothing: it was set back meanwhile.
  uptime += 600;
  steady += 1001;
  wall += 1001;
  expect(clock()).toBeGreaterThan(1_200_000);
});

test('lease time never goes back, though uptime tells whole seconds and the wall clock is set meanwhile', () => {
  let [true_ms, slept_ms, stepped_ms] = [0, 0, 0];
  const clock = openLeaseClock(
    () => true_ms,
    () => 1000 + Math.floor((true_ms + slept_ms) / 1000),
    () => 1_790_000_000_000 + true_ms + slept_ms + stepped_ms,
  );
  slept_ms = 60_000;
  let last = clock();
  while (true_ms < 20_000) {
    true_ms += 10;
    if (true_ms % 990 === 0) stepped_ms += 100;
    const now = clock();
    expect(now).toBeGreaterThanOrEqual(last);
    expect(now).toBeLessThanOrEqual(true_ms + slept_ms);
    last = now;
  }
});

test('the lease runs from the newest acknowledged beat, by when it was sent', () => {
  const t = timings(5000);
  expect(fenceIn(NO_LEASE, 0)).toBe(Number.POSITIVE_INFINITY);
  const held = renewLease(renewLease(NO_LEASE, 1000, t), 500, t);
  expect(fenceIn(held, 1000)).toBe(t.fence_ms);
});

test('after a sleep the next check fences at once, though no timer has run', () => {
  const clock = new ManualClock();
  let slept_ms = 0;
  let fences = 0;
  const guard = new Guard(clock, () => clock.now_ms() + slept_ms, {
    fence: () => fences++,
    fenceDetached: () => undefined,
    dropAttached: () => undefined,
  });
  guard.renew(0, timings(5000), 'all');
  guard.check();
  expect(fences).toBe(0);
  slept_ms = 14_000;
  guard.check();
  guard.check();
  expect(fences).toBe(1);
});

test('what is acknowledged for attached work alone leaves detached work the lease that it had', () => {
  const clock = new ManualClock();
  const fenced: string[] = [];
  const guard = new Guard(clock, () => clock.now_ms(), {
    fence: () => fenced.push('all'),
    fenceDetached: () => fenced.push('detached'),
    dropAttached: () => undefined,
  });
  const t = timings(5000);
  guard.renew(0, t, 'all');
  clock.advance(t.fence_ms - 1);
  guard.renew(clock.now_ms(), t, 'attached');
  expect(fenced).toEqual([]);
  clock.advance(1);
  expect(fenced).toEqual(['detached']);
  clock.advance(t.fence_ms - 1);
  expect(fenced).toEqual(['detached', 'all']);
});
