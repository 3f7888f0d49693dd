import { timings } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { nodeRecord } from '../testing/peer-replicas.ts';
import { createRoster } from './roster.ts';
import { nodeView } from './view.ts';

test('a node that is away is away, whatever its backends last said or did not say', () => {
  const clock = new ManualClock();
  const roster = createRoster(clock, timings(5000));
  roster.load(
    [
      { ...nodeRecord('away', 'model'), state: 'offline' },
      { ...nodeRecord('here', 'model'), state: 'online' },
    ],
    [],
  );
  const why = (id: string) => nodeView(roster.find(id)!, clock, timings(5000), 'rep_a').why;
  expect(why('away').failing_probes).toEqual([]);
  expect(why('away').summary).not.toContain('down');
  expect(why('here').failing_probes).toEqual([expect.stringContaining('down: not reported yet')]);
});
