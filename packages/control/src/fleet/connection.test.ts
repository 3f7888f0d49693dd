import { timings } from '@flotilla/core';
import { expect, test } from 'vitest';
import type { Discoveries } from '../discovery/discoveries.ts';
import { memoryLog } from '../testing/memory-log.ts';
import { nodeRecord, peerReplicas } from '../testing/peer-replicas.ts';
import { createConnections } from './connection.ts';
import { latestWriter } from './latest-writer.ts';
import { createWatch } from './watch.ts';

test('a node that is linked elsewhere holds nothing here that is over, and what runs waits for its return', async () => {
  const world = peerReplicas();
  const { clock } = world;
  const replica = world.replica('rep_a', [nodeRecord('node_a', 'm', 2)]);
  const link = replica.link('node_a');
  const timing = timings(5000);
  const log = memoryLog();
  const connections = createConnections({
    clock,
    log,
    replica: 'rep_a',
    shared: true,
    renews: () => 'all',
    timings: timing,
    roster: replica.roster,
    dispatcher: replica.dispatcher,
    discoveries: { joined() {}, lost() {}, openOf: () => [] } as unknown as Discoveries,
    watch: createWatch(clock, timing, () => undefined),
    states: latestWriter(() => Promise.resolve(), clock, log, 'states'),
    descriptors: latestWriter(() => Promise.resolve(), clock, log, 'descriptors'),
    seen() {},
    beat() {},
    differed() {},
    moved() {},
    left() {},
    holdingBack: () => false,
  });
  const [gone, stays] = [replica.ask('job_1', 'm'), replica.ask('job_2', 'm')];
  for (const attempt of link.offers) link.begins(attempt, 'Hel');
  // The node has not said yet that it has let go of it.
  gone.leave();
  const node = replica.node('node_a');
  expect([node.attempts.size, node.ledger.holders.size]).toEqual([2, 2]);
  connections.elsewhere(node, {
    id: 'node_a',
    replica: 'rep_b',
    epoch: 2,
    state: 'online',
    close_reason: null,
    descriptor: null,
    descriptor_hash: null,
    health: [],
  });
  expect([[...node.attempts.keys()], node.ledger.holders.size]).toEqual([['job_2:1'], 0]);
  await world.pass(4900);
  expect(stays.end).toBeNull();
  await world.pass(200);
  expect([stays.text, stays.end?.code]).toEqual(['Hel', 'node_lost']);
});
