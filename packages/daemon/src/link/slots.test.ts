import { expect, test } from 'vitest';
import { Slots } from './slots.ts';

test('a pool takes as many as it has slots, and one more for each that is released', () => {
  const slots = new Slots([{ id: 'gpu', capacity: 2 }]);
  expect([slots.take('gpu'), slots.take('gpu'), slots.take('gpu'), slots.take('none')]).toEqual([
    true,
    true,
    false,
    false,
  ]);
  slots.release('gpu');
  expect(slots.take('gpu')).toBe(true);
  expect(() => slots.release('none')).toThrow('released twice');
});

test('a pool that shrinks or goes keeps count of what still runs in it', () => {
  const slots = new Slots([{ id: 'gpu', capacity: 3 }]);
  slots.take('gpu');
  slots.take('gpu');
  slots.resize([{ id: 'gpu', capacity: 1 }]);
  slots.release('gpu');
  expect(slots.take('gpu')).toBe(false);
  slots.resize([]);
  expect(slots.load()).toEqual([{ id: 'gpu', in_flight: 1, capacity: 0 }]);
  slots.release('gpu');
  slots.resize([{ id: 'cpu', capacity: 1 }]);
  expect(slots.load()).toEqual([{ id: 'cpu', in_flight: 0, capacity: 1 }]);
});
