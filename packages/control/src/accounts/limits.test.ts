import type { RequestSize } from '@flotilla/core';
import { FlotillaError, type TokenUsage } from '@flotilla/protocol';
import { expect, test } from 'vitest';
import { keyRecord } from '../testing/key-record.ts';
import { ManualClock } from '@flotilla/core/testing';
import { createLimits } from './limits.ts';

const SIZE: RequestSize = { prompt_tokens: 18, answer_tokens: 50 };
/** A key's first request of that size reserves this much. */
const RESERVED = 100;

function refusalOf(run: () => unknown): FlotillaError {
  try {
    run();
  } catch (error) {
    if (error instanceof FlotillaError) return error;
  }
  throw new Error('nothing was refused');
}

test('a key without limits is never refused and gets no headers', () => {
  const limits = createLimits(new ManualClock());
  const key = keyRecord();
  for (let i = 0; i < 1000; i++) expect(limits.admit(key, SIZE).headers).toEqual({});
});

test('requests per minute: a minute at once, then one each time a token is there', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({ requests_per_minute: 3 });
  expect(limits.admit(key, SIZE).headers).toEqual({
    'x-ratelimit-limit-requests': '3',
    'x-ratelimit-remaining-requests': '2',
    'x-ratelimit-reset-requests': '20s',
  });
  limits.admit(key, SIZE);
  limits.admit(key, SIZE);
  const refused = refusalOf(() => limits.admit(key, SIZE));
  expect(refused).toMatchObject({ code: 'rate_limited', details: { retry_after_ms: 20_000 } });
  clock.advance(19_999);
  expect(refusalOf(() => limits.admit(key, SIZE)).details.retry_after_ms).toBe(1);
  clock.advance(1);
  limits.admit(key, SIZE);
});

test('concurrency: a released request makes room once', () => {
  const limits = createLimits(new ManualClock());
  const key = keyRecord({ concurrency: 2 });
  const first = limits.admit(key, SIZE);
  limits.admit(key, SIZE);
  expect(refusalOf(() => limits.admit(key, SIZE)).code).toBe('rate_limited');
  first.release();
  first.release();
  limits.admit(key, SIZE);
  expect(refusalOf(() => limits.admit(key, SIZE)).details.retry_after_ms).toBeGreaterThan(0);
});

test('a request refused for concurrency takes no token', () => {
  const limits = createLimits(new ManualClock());
  const key = keyRecord({ concurrency: 1, requests_per_minute: 2 });
  const first = limits.admit(key, SIZE);
  for (let i = 0; i < 10; i++) refusalOf(() => limits.admit(key, SIZE));
  first.release();
  expect(limits.admit(key, SIZE).headers['x-ratelimit-remaining-requests']).toBe('0');
});

test('keys do not share limits, and a changed limit counts at once', () => {
  const limits = createLimits(new ManualClock());
  limits.admit(keyRecord({ requests_per_minute: 1 }), SIZE);
  limits.admit(keyRecord({ id: 'key_2', requests_per_minute: 1 }), SIZE);
  expect(refusalOf(() => limits.admit(keyRecord({ requests_per_minute: 1 }), SIZE)).code).toBe(
    'rate_limited',
  );
  limits.admit(keyRecord({ requests_per_minute: 2 }), SIZE);
  limits.admit(keyRecord({ requests_per_minute: null }), SIZE);
});

const cost = (tokens: number): TokenUsage => ({
  prompt_tokens: 18,
  completion_tokens: tokens - 18,
  cached_tokens: 0,
  estimated: false,
});

test('tokens per minute: reserved before, put right after, and told in the headers', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({ tokens_per_minute: 120 });
  const first = limits.admit(key, SIZE);
  expect(first.headers).toEqual({
    'x-ratelimit-limit-tokens': '120',
    'x-ratelimit-remaining-tokens': '20',
    'x-ratelimit-reset-tokens': '50s',
  });
  const refused = refusalOf(() => limits.admit(key, SIZE));
  expect(refused).toMatchObject({ code: 'rate_limited', details: { retry_after_ms: 40_000 } });
  first.settle(cost(20), clock.wall_ms());
  first.settle(cost(20), clock.wall_ms());
  expect(limits.headers(key)['x-ratelimit-remaining-tokens']).toBe('100');
});

test('tokens per minute: what cost more than was reserved is owed', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({ tokens_per_minute: 60 });
  const first = limits.admit(key, SIZE); // more than a minute's worth: takes all there is
  first.settle(cost(180), clock.wall_ms());
  expect(limits.headers(key)).toMatchObject({
    'x-ratelimit-remaining-tokens': '0',
    'x-ratelimit-reset-tokens': '3m0s',
  });
  expect(refusalOf(() => limits.admit(key, SIZE)).details.retry_after_ms).toBe(180_000);
  clock.advance(180_000);
  limits.admit(key, SIZE);
});

test('a refusal takes nothing, whichever limit it comes from', () => {
  const limits = createLimits(new ManualClock());
  const key = keyRecord({
    requests_per_minute: 10,
    tokens_per_minute: 1000,
    token_budget: { tokens: RESERVED, period: 'total' },
  });
  limits.admit(key, SIZE);
  const before = limits.left(key);
  expect(refusalOf(() => limits.admit(key, SIZE)).code).toBe('rate_limited');
  expect(limits.left(key)).toEqual(before);
});

test('undone work gives all of it back, once', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({
    requests_per_minute: 10,
    tokens_per_minute: 1000,
    token_budget: { tokens: 1000, period: 'day' },
  });
  const before = limits.left(key);
  const admission = limits.admit(key, SIZE);
  expect(limits.left(key).budget).toMatchObject({ reserved: RESERVED, remaining: 900 });
  admission.undo();
  admission.undo();
  admission.settle(cost(50), clock.wall_ms());
  expect(limits.left(key)).toEqual(before);
});

test('a used-up budget says when it renews, and then does', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({ token_budget: { tokens: 100, period: 'day' } });
  limits.admit(key, SIZE).settle(cost(101), clock.wall_ms());
  const refused = refusalOf(() => limits.admit(key, SIZE));
  const renews_at = Math.floor(clock.wall_ms() / 86_400_000 + 1) * 86_400_000;
  expect(refused.code).toBe('insufficient_credit');
  expect(refused.message).toContain(`It renews at ${new Date(renews_at).toISOString()}`);
  expect(refused.details.more).toMatchObject({ budget: { tokens: 100, used: 101 } });
  clock.advance(renews_at - clock.wall_ms());
  expect(limits.left(key).budget).toMatchObject({ used: 0, remaining: 100 });
  limits.admit(key, SIZE);
});

test('a request that ends in the next period costs the one it was made in', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({ token_budget: { tokens: 1000, period: 'day' } });
  const made_at = clock.wall_ms();
  const admission = limits.admit(key, SIZE);
  clock.advance(86_400_000);
  admission.settle(cost(60), made_at);
  expect(limits.left(key).budget).toMatchObject({ used: 0, reserved: 0 });
});

test('what the store says was spent counts, also for a budget that is given later', () => {
  const spending = [{ key: keyRecord().id, day: 1, week: 2, month: 30, total: 400 }];
  const clock = new ManualClock();
  const limits = createLimits(clock, spending);
  limits.admit(keyRecord(), SIZE).settle(cost(60), clock.wall_ms());
  limits.settled({ key: keyRecord().id, created_at: clock.wall_ms(), ...cost(20) });
  const used = (period: 'day' | 'total') =>
    limits.left(keyRecord({ token_budget: { tokens: 1000, period } })).budget?.used;
  expect([used('day'), used('total')]).toEqual([81, 480]);
});

test('work whose usage row was lost is not counted, as after a restart', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({ token_budget: { tokens: 1000, period: 'month' } });
  const admission = limits.admit(key, SIZE);
  admission.settle(cost(60), clock.wall_ms());
  admission.forget();
  admission.forget();
  expect(limits.left(key).budget).toMatchObject({ used: 0, reserved: 0, remaining: 1000 });
});

test('a usage row that is corrected counts by the difference, in the budget and in the minute', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = keyRecord({ tokens_per_minute: 1000, token_budget: { tokens: 1000, period: 'day' } });
  const row = (tokens: number) => ({ key: key.id, created_at: clock.wall_ms(), ...cost(tokens) });
  limits.admit(key, SIZE).settle(row(20), clock.wall_ms());
  limits.settled(row(50), row(20));
  const left = { budget: { used: 50, reserved: 0 }, tokens: { remaining: 950 } };
  expect(limits.left(key)).toMatchObject(left);
  limits.settled(row(50), row(50));
  expect(limits.left(key)).toMatchObject(left);
  limits.settled(row(30), row(50));
  expect(limits.left(key)).toMatchObject({ budget: { used: 30 }, tokens: { remaining: 970 } });
});

test('what was reserved before a restart is reserved again, whatever is left, in the period it was made in', () => {
  const clock = new ManualClock();
  const spending = [{ key: keyRecord().id, day: 90, week: 90, month: 90, total: 90 }];
  const limits = createLimits(clock, spending);
  const key = keyRecord({ tokens_per_minute: 500, token_budget: { tokens: 100, period: 'day' } });
  const made_at = clock.wall_ms();
  const restored = limits.restore(key, { tokens: 60, created_at: made_at });
  limits.restore(key, { tokens: 60, created_at: made_at - 86_400_000 });
  expect(limits.left(key)).toMatchObject({
    budget: { used: 90, reserved: 60, remaining: 0 },
    tokens: { remaining: 500 },
  });
  expect(refusalOf(() => limits.admit(key, SIZE)).code).toBe('rate_limited');
  restored.settle(cost(5 + 18), made_at);
  restored.settle(cost(5 + 18), made_at);
  expect(limits.left(key).budget).toMatchObject({ used: 113, reserved: 0 });
  expect(refusalOf(() => limits.admit(key, SIZE)).code).toBe('insufficient_credit');
});
