import { newLiveness, stepLiveness, timings } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import type { FleetNode } from './node.ts';
import { createWatch } from './watch.ts';

test('a node that registers beside one that is awaited for longer is found silent in its own time', () => {
  const clock = new ManualClock();
  const t = timings(5000);
  const states: [string, number][] = [];
  const watch = createWatch(clock, t, (node) => {
    node.liveness = stepLiveness(node.liveness, { type: 'tick' }, clock.now_ms(), t);
    states.push([node.liveness.state, clock.now_ms()]);
  });
  const awaited = { liveness: { ...newLiveness('suspect', 'awaited'), last_beat_ms: 5000 } } as FleetNode;
  watch.touch(awaited);
  const node = { liveness: newLiveness('pending', 'new') } as FleetNode;
  for (const type of ['registered', 'reconciled'] as const) {
    node.liveness = stepLiveness(node.liveness, { type }, clock.now_ms(), t);
  }
  watch.touch(node);
  clock.advance(16_000);
  expect(states).toEqual([
    ['suspect', 12_500],
    ['offline', 15_000],
  ]);
  clock.advance(10_000);
  expect(states.at(-1)).toEqual(['offline', 20_000]);
  watch.close();
  expect(clock.pending).toBe(0);
});
