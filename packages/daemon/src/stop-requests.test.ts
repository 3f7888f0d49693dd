import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { createStopRequests, SAME_KEY_PRESS_MS } from './stop-requests.ts';

test('a signal that comes twice at once is one request; a later one means at once', () => {
  const clock = new ManualClock();
  const heard = createStopRequests((delay_ms, run) => clock.after(delay_ms, run));
  expect([heard(), heard()]).toEqual(['in order', 'the same again']);
  clock.advance(SAME_KEY_PRESS_MS - 1);
  expect(heard()).toBe('the same again');
  clock.advance(1);
  expect([heard(), heard()]).toEqual(['at once', 'at once']);
});
