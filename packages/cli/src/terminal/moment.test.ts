import { expect, test } from 'vitest';
import { ago, formatDuration, parseDuration } from './moment.ts';

test('durations are read as people write them', () => {
  expect(['250ms', '90s', '10m', '1.5h', '7d'].map(parseDuration)).toEqual([
    250, 90_000, 600_000, 5_400_000, 604_800_000,
  ]);
  expect(['', '5', 's', '-1s', '1w', '1m30s'].map(parseDuration)).toEqual(
    Array.from({ length: 6 }, () => undefined),
  );
});

test('durations are told as what they are nearest to', () => {
  // A day that was given a moment ago.
  expect([86_399_000, 7_190_000, 150_000].map(formatDuration)).toEqual(['24h', '120m', '3m']);
});

test('durations are told in the unit that says enough', () => {
  expect([0, 420, 1500, 42_000, 119_000, 120_000, 7_200_000, 172_800_000].map(formatDuration)).toEqual([
    '0ms',
    '420ms',
    '1.5s',
    '42s',
    '119s',
    '2m',
    '2h',
    '2d',
  ]);
});

test('moments are told from now', () => {
  const now = Date.parse('2026-01-01T00:10:00Z');
  expect(ago('2026-01-01T00:05:00Z', now)).toBe('5m ago');
  expect(ago('2026-01-01T00:40:00Z', now)).toBe('in 30m');
  expect(ago('2026-01-01T00:10:00Z', now)).toBe('now');
  expect(ago(null, now)).toBe('never');
});
