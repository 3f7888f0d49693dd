import { expect, test } from 'vitest';
import { forgetFailures } from './node.ts';

test('half of what a node has failed is forgotten each minute, however often it is asked', () => {
  const often = { failures: 8, failures_at_ms: 0 };
  for (let now_ms = 5000; now_ms <= 120_000; now_ms += 5000) forgetFailures(often, now_ms);
  expect(often.failures).toBeCloseTo(2);
  const once = { failures: 8, failures_at_ms: 0 };
  forgetFailures(once, 120_000);
  expect(once.failures).toBeCloseTo(2);
});
