import { type HeldJob, type NodeRecord, timings } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { createRoster } from '../fleet/roster.ts';
import { memoryLog } from '../testing/memory-log.ts';
import { createReturns } from './returns.ts';

const record: NodeRecord = {
  id: 'node_a',
  name: 'a',
  labels: {},
  allowed_models: [],
  state: 'offline',
  cordoned: false,
  drain_deadline_at: null,
  epoch: 2,
  descriptor: { name: 'a', labels: {}, version: '1', pools: [], backends: [] },
  descriptor_hash: 'h',
  close_reason: null,
  created_at: 0,
  last_seen_at: 0,
  revoked_at: null,
  credentials: [],
};

/** A node that nobody has seen for longer than a lease, as far as is known here, and that holds a job in the store. */
async function takenFrom({
  records = [record],
  after_ms = 60_000,
  look,
}: {
  records?: NodeRecord[];
  after_ms?: number;
  look: (roster: ReturnType<typeof createRoster>) => boolean;
}): Promise<string[]> {
  const clock = new ManualClock();
  const roster = createRoster(clock, timings(5000));
  roster.load(records, []);
  const taken: string[] = [];
  const returns = createReturns({
    clock,
    log: memoryLog(),
    store: {
      keepJobs: () => Promise.resolve([]),
      heldNodes: () => Promise.resolve(['node_a']),
      heldJobs: () =>
        Promise.resolve([
          {
            id: 'job_a',
            attempt: 1,
            node: 'node_a',
            epoch: 2,
            replica: 'other',
            state: 'running',
          } as HeldJob,
        ]),
    },
    replica: 'this',
    roster,
    held: {
      jobs: new Map(),
      keep: () => ({ job: 'job_a', attempt: 1, verdict: 'abandon' }),
      lose: ({ id }) => (taken.push(id), Promise.resolve()),
    },
    lease_ttl_ms: 15_000,
    predecessor_renews_ms: 5000,
    lives: () => Promise.resolve(true),
    look: () => Promise.resolve(look(roster)),
    heldBack: () => false,
  });
  clock.advance(after_ms);
  await returns.sweep();
  return taken;
}

test('what a node holds that nobody has seen for a lease is taken from it', async () => {
  expect(await takenFrom({ look: () => true })).toEqual(['job_a']);
});

test('nothing is taken from a node that came to another replica since this one last read of it', async () => {
  const comes = (roster: ReturnType<typeof createRoster>) => {
    roster.find('node_a')!.replica = 'other';
    return true;
  };
  expect(await takenFrom({ look: comes })).toEqual([]);
  const enrolled = (roster: ReturnType<typeof createRoster>) => {
    roster.load([record], []);
    return comes(roster);
  };
  expect(await takenFrom({ records: [], look: enrolled }), 'one that was not known here').toEqual([]);
});

test('nothing is taken from a node, and the look is tried again, while the store does not say where it is', async () => {
  await expect(takenFrom({ look: () => false })).rejects.toThrow('did not say');
});

test('nor before a lease is over that one which was here before could have renewed when this one had begun', async () => {
  expect(await takenFrom({ after_ms: 19_999, look: () => true })).toEqual([]);
  expect(await takenFrom({ after_ms: 20_000, look: () => true })).toEqual(['job_a']);
});
