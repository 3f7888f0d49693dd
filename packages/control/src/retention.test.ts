import type { RetentionLimits, SweepResult } from '@flotilla/core';
import { expect, test, vi } from 'vitest';
import { startRetention } from './retention.ts';
import { ManualClock } from '@flotilla/core/testing';
import { memoryLog } from './testing/memory-log.ts';

function setup(answers: (SweepResult | Error)[]) {
  const clock = new ManualClock();
  const calls: { limits: RetentionLimits; now: number }[] = [];
  const none = { jobs: 0, usage: 0, tokens: 0, credentials: 0, audit: 0, discoveries: 0 };
  const log = memoryLog();
  const retention = startRetention({
    store: {
      sweep(limits, now) {
        calls.push({ limits, now });
        const answer = answers.shift() ?? none;
        return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer);
      },
    },
    clock,
    random: { next: () => 0.5, bytes: (length) => new Uint8Array(length) },
    log,
    job_retention_days: 30,
    usage_retention_days: 400,
    audit_retention_days: 400,
  });
  return { clock, calls, log, retention };
}

test('sweeps every few minutes, as long as whole batches come', async () => {
  const full = { jobs: 1000, usage: 0, tokens: 0, credentials: 0, audit: 0, discoveries: 0 };
  const { clock, calls } = setup([full, full]);
  clock.advance(4 * 60_000);
  await vi.waitFor(() => expect(calls).toHaveLength(3));
  expect(calls[0]).toEqual({
    limits: { jobs_ms: 30 * 86_400_000, usage_ms: 400 * 86_400_000, audit_ms: 400 * 86_400_000, batch: 1000 },
    now: clock.wall_ms(),
  });
});

test('a failed sweep is told and tried again', async () => {
  const { clock, calls, log, retention } = setup([new Error('no store')]);
  clock.advance(4 * 60_000);
  await vi.waitFor(() => expect(clock.pending).toBe(1));
  expect(log.lines[0]?.level).toBe('warn');
  clock.advance(4 * 60_000);
  await vi.waitFor(() => expect(calls).toHaveLength(2));
  await retention.stop();
  expect(clock.pending).toBe(0);
});
