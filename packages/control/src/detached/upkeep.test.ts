import { ManualClock } from '@flotilla/core/testing';
import { expect, onTestFinished, test } from 'vitest';
import { memoryLog } from '../testing/memory-log.ts';
import { startUpkeep } from './upkeep.ts';

test('a retry whose back-off is over is told with its lane, even where the look at lanes does not reach that', async () => {
  const clock = new ManualClock();
  const told: string[] = [];
  const retries = [{ lane: 'lane_z', order_key: 1, priority: 0 }];
  const upkeep = startUpkeep({
    clock,
    log: memoryLog(),
    store: {
      expireJobs: () => Promise.resolve([]),
      readyJobs: () => Promise.resolve(retries.splice(0)),
      readyLanes: () => Promise.resolve([{ lane: 'lane_a', order_key: 2, priority: 0 }]),
      eraseBodies: () => Promise.resolve(0),
      nextDue: () => Promise.resolve(null),
    },
    expired: () => undefined,
    learnEnds: () => Promise.resolve(),
    ready: (lane) => void told.push(lane),
    wake: () => void told.push('wake'),
    spared: () => Promise.resolve([]),
    shared: false,
    spareEndsIn: () => Number.POSITIVE_INFINITY,
    sweepNodes: () => Promise.resolve(),
  });
  onTestFinished(() => upkeep.close());
  clock.advance(10);
  await expect.poll(() => told).toEqual(['lane_z', 'lane_a', 'wake']);
});
