import { describe, expect, it } from 'vitest';
import { PRIORITY_STEP_MS, newFairShare, orderKey, refund } from './fair-share.ts';

describe('fair share', () => {
  it("puts another key's job in front of most of a burst", () => {
    const share = newFairShare();
    const burst = Array.from({ length: 100 }, () => orderKey(share, 'busy', 0, 1000));
    const other = orderKey(share, 'quiet', 0, 1500);
    expect(burst.filter((key) => key < other)).toHaveLength(1);
  });

  it('makes a job that waits older than everything that comes a minute of priority later', () => {
    const share = newFairShare();
    const waiting = orderKey(share, 'a', 0, 0);
    expect(orderKey(share, 'b', 1, 30_000)).toBeLessThan(waiting);
    expect(orderKey(share, 'c', 1, PRIORITY_STEP_MS + 1)).toBeGreaterThan(waiting);
  });

  it('costs nothing where nobody had to wait', () => {
    const share = newFairShare();
    for (let index = 0; index < 50; index++) {
      orderKey(share, 'a', 0, 0);
      refund(share, 'a');
    }
    expect(orderKey(share, 'a', 0, 0)).toBe(0);
  });

  it('forgets keys that have no debt', () => {
    const share = newFairShare();
    for (let index = 0; index < 25_000; index++) orderKey(share, `key ${index}`, 0, index * 2000);
    expect(share.virtual_ms.size).toBeLessThan(10_001);
  });
});
