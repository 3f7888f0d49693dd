import { ManualClock } from '@flotilla/core/testing';
import { expect, onTestFinished, test } from 'vitest';
import { memoryLog } from '../testing/memory-log.ts';
import { startUpkeep, type UpkeepDeps } from './upkeep.ts';

function setup(more: Partial<UpkeepDeps> = {}) {
  const clock = new ManualClock();
  const upkeep = startUpkeep({
    clock,
    log: memoryLog(),
    store: {
      expireJobs: () => Promise.resolve([]),
      readyJobs: () => Promise.resolve([]),
      readyLanes: () => Promise.resolve([]),
      eraseBodies: () => Promise.resolve(0),
      nextDue: () => Promise.resolve(null),
    },
    expired: () => undefined,
    learnEnds: () => Promise.resolve(),
    ready: () => undefined,
    wake: () => undefined,
    spared: () => Promise.resolve([]),
    shared: false,
    spareEndsIn: () => Number.POSITIVE_INFINITY,
    sweepNodes: () => Promise.resolve(),
    ...more,
  });
  onTestFinished(() => upkeep.close());
  return { clock, upkeep };
}

test('a retry whose back-off is over is told with its lane, even where the look at lanes does not reach that', async () => {
  const told: string[] = [];
  const retries = [{ lane: 'lane_z', order_key: 1, priority: 0 }];
  const { clock } = setup({
    store: {
      expireJobs: () => Promise.resolve([]),
      readyJobs: () => Promise.resolve(retries.splice(0)),
      readyLanes: () => Promise.resolve([{ lane: 'lane_a', order_key: 2, priority: 0 }]),
      eraseBodies: () => Promise.resolve(0),
      nextDue: () => Promise.resolve(null),
    },
    ready: (lane) => void told.push(lane),
    wake: () => void told.push('wake'),
  });
  clock.advance(10);
  await expect.poll(() => told).toEqual(['lane_z', 'lane_a', 'wake']);
});

test('nodes are looked at when each lease is over, though looks came before that, and would have come after', async () => {
  const swept: number[] = [];
  const { clock, upkeep } = setup({ sweepNodes: () => Promise.resolve(void swept.push(clock.now_ms())) });
  const began_ms = clock.now_ms();
  upkeep.lookAtNodesIn(8000);
  upkeep.lookAtNodesIn(7000);
  upkeep.lookAtNodesIn(6950);
  for (const [passed_ms, at_ms] of [
    [10, [10]],
    [5000, [10, 5010]],
    [1990, [10, 5010, 7000]],
    [1000, [10, 5010, 7000, 8000]],
    [5000, [10, 5010, 7000, 8000, 13_000]],
  ] as const) {
    clock.advance(passed_ms);
    await expect.poll(() => swept.map((ms) => ms - began_ms)).toEqual(at_ms);
    // It has said when it looks again.
    await expect.poll(() => clock.pending).toBe(1);
  }
});
