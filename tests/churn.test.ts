import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { ChurnMap } from '@flotilla/core';
import { expect, test } from 'vitest';

const OPEN = 64;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as (options?: { type: 'minor' }) => void;

test('what has left a churn map is gone with the next run of the young collector', () => {
  const map = new ChurnMap<number, string[]>();
  for (let n = 0; n < OPEN; n++) map.set(n, []);
  // From here on its table is old.
  collect();
  const before = getHeapStatistics().used_heap_size;
  for (let n = 0; n < 2000; n++) {
    map.delete(n);
    map.set(
      n + OPEN,
      Array.from({ length: 1000 }, () => 'x'),
    );
  }
  collect({ type: 'minor' });
  // What is in it takes half a megabyte; a `Map` would keep 16.
  expect(getHeapStatistics().used_heap_size - before).toBeLessThan(4_000_000);
});
