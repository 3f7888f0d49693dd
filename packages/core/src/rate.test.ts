import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { newBucket, takeToken } from './rate.ts';
import { RETRY_MOST_MS, retryDelay } from './retry.ts';

describe('requests per minute', () => {
  it('lets a minute of requests through at once, and then one by one', () => {
    const bucket = newBucket(3, 0);
    expect([1, 2, 3].map(() => takeToken(bucket, 3, 0))).toEqual([0, 0, 0]);
    expect(takeToken(bucket, 3, 0)).toBe(20_000);
    expect(takeToken(bucket, 3, 20_000)).toBe(0);
  });

  it('never lets more through in any minute than twice the rate, and says truly when to come back', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 100 }),
        fc.array(fc.nat(5000), { maxLength: 200 }),
        (rate, waits) => {
          const bucket = newBucket(rate, 0);
          let now = 0;
          const passed: number[] = [];
          for (const wait of waits) {
            now += wait;
            const refused_ms = takeToken(bucket, rate, now);
            if (refused_ms === 0) passed.push(now);
            else expect(takeToken({ ...bucket }, rate, now + refused_ms)).toBe(0);
            expect(passed.filter((at) => at > now - 60_000).length).toBeLessThanOrEqual(2 * rate);
          }
        },
      ),
    );
  });
});

describe('the back-off', () => {
  it('doubles, is half random, and has a bound', () => {
    expect(retryDelay(1, 0)).toBe(50);
    expect(retryDelay(1, 1)).toBe(100);
    expect(retryDelay(3, 1)).toBe(400);
    expect(retryDelay(50, 1)).toBe(RETRY_MOST_MS);
    expect(retryDelay(1, 0, 3_600_000)).toBe(RETRY_MOST_MS);
  });
});
