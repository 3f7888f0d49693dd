import { FlotillaError } from '@flotilla/protocol';
import { expect, test } from 'vitest';
import { keyRecord } from '../testing/key-record.ts';
import { ManualClock } from '@flotilla/core/testing';
import { principalOf } from './keys.ts';
import { createLimits } from './limits.ts';

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
  const key = principalOf(keyRecord());
  for (let i = 0; i < 1000; i++) expect(limits.admit(key).headers).toEqual({});
});

test('requests per minute: a minute at once, then one each time a token is there', () => {
  const clock = new ManualClock();
  const limits = createLimits(clock);
  const key = principalOf(keyRecord({ requests_per_minute: 3 }));
  expect(limits.admit(key).headers).toEqual({
    'x-ratelimit-limit-requests': '3',
    'x-ratelimit-remaining-requests': '2',
    'x-ratelimit-reset-requests': '20s',
  });
  limits.admit(key);
  limits.admit(key);
  const refused = refusalOf(() => limits.admit(key));
  expect(refused).toMatchObject({ code: 'rate_limited', details: { retry_after_ms: 20_000 } });
  clock.advance(19_999);
  expect(refusalOf(() => limits.admit(key)).details.retry_after_ms).toBe(1);
  clock.advance(1);
  limits.admit(key);
});

test('concurrency: a released request makes room once', () => {
  const limits = createLimits(new ManualClock());
  const key = principalOf(keyRecord({ concurrency: 2 }));
  const first = limits.admit(key);
  limits.admit(key);
  expect(refusalOf(() => limits.admit(key)).code).toBe('rate_limited');
  first.release();
  first.release();
  limits.admit(key);
  expect(refusalOf(() => limits.admit(key)).details.retry_after_ms).toBeGreaterThan(0);
});

test('a request refused for concurrency takes no token', () => {
  const limits = createLimits(new ManualClock());
  const key = principalOf(keyRecord({ concurrency: 1, requests_per_minute: 2 }));
  const first = limits.admit(key);
  for (let i = 0; i < 10; i++) refusalOf(() => limits.admit(key));
  first.release();
  expect(limits.admit(key).headers['x-ratelimit-remaining-requests']).toBe('0');
});

test('keys do not share limits, and a changed limit counts at once', () => {
  const limits = createLimits(new ManualClock());
  limits.admit(principalOf(keyRecord({ requests_per_minute: 1 })));
  limits.admit(principalOf(keyRecord({ id: 'key_2', requests_per_minute: 1 })));
  expect(refusalOf(() => limits.admit(principalOf(keyRecord({ requests_per_minute: 1 })))).code).toBe(
    'rate_limited',
  );
  limits.admit(principalOf(keyRecord({ requests_per_minute: 2 })));
  limits.admit(principalOf(keyRecord({ requests_per_minute: null })));
});
