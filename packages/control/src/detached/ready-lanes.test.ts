import { expect, test } from 'vitest';
import { laneText } from './lane.ts';
import { ReadyLanes } from './ready-lanes.ts';

const lane = (model: string, avoid: string[] = []) =>
  laneText({ model, operation: 'chat', labels: {}, pin: null, avoid });

test('a line stands where the job stands that goes first, whatever its priority is worth', () => {
  const ready = new ReadyLanes();
  expect(ready.headOf('m')).toBeUndefined();
  ready.note(lane('m'), 700_000, 0);
  ready.note(lane('m', ['node_a']), 500_000, 0);
  ready.note(lane('other'), 1, 0);
  expect(ready.headOf('m')).toBe(500_000);
  // Sent at 900,000; ten minutes ahead of it.
  ready.note(lane('m', ['node_a']), 300_000, 10);
  expect(ready.headOf('m')).toBe(700_000);
});
