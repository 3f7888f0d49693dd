import { type ClaimRequest, type NodeRecord, stepLiveness, timings } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { createRoster } from '../fleet/roster.ts';
import { memoryLog } from '../testing/memory-log.ts';
import { createClaims } from './claims.ts';
import { laneText } from './lane.ts';
import { ReadyLanes } from './ready-lanes.ts';

const record: NodeRecord = {
  id: 'node_a',
  name: 'a',
  labels: {},
  allowed_models: [],
  state: 'offline',
  cordoned: false,
  drain_deadline_at: null,
  epoch: 1,
  descriptor: {
    name: 'a',
    labels: {},
    version: '1',
    pools: [{ id: 'p', capacity: 2, capacity_from: 'config' }],
    backends: [{ id: 'b', kind: 'x', pool: 'p', models: [{ id: 'm', operations: ['chat'] }] }],
  },
  descriptor_hash: 'h',
  close_reason: null,
  created_at: 0,
  last_seen_at: 0,
  revoked_at: null,
  credentials: [],
};

/** Claims for one node of two slots and one lane; the store has a job for each slot that it is asked for. */
function setup({
  room = () => 64,
  results = () => Promise.resolve(),
  claimJobs = () => Promise.resolve([]),
  uncertain = () => Promise.resolve(),
}: {
  room?: () => number;
  results?: () => Promise<unknown>;
  claimJobs?: () => Promise<never[]>;
  uncertain?: () => Promise<void>;
} = {}) {
  const clock = new ManualClock();
  const roster = createRoster(clock, timings(5000));
  const [node] = roster.load([record], []).added;
  roster.setHealth(node!, [{ id: 'b', health: 'healthy', models: [] }] as never);
  node!.liveness = stepLiveness(node!.liveness, { type: 'registered' }, 0, timings(5000));
  node!.liveness = stepLiveness(node!.liveness, { type: 'reconciled' }, 0, timings(5000));
  roster.sync(node!);
  const ready = new ReadyLanes();
  const lane = laneText({ model: 'm', operation: 'chat', labels: {}, pin: null, avoid: [] });
  ready.note(lane, 1, 0, 2);
  const asked: ClaimRequest[] = [];
  const claims = createClaims({
    clock,
    random: { next: () => 0, bytes: (count) => new Uint8Array(count) },
    log: memoryLog(),
    store: {
      claimJobs: (request) => (asked.push(request), claimJobs()),
      heldJobs: () => Promise.resolve([]),
    },
    replica: 'r',
    places: {
      tiers: (model) => [{ model, labels: {}, spots: roster.spots(model) }],
      servedBy: ({ model }) => [model],
      known: () => true,
    },
    ready,
    room,
    offer() {},
    giveBack() {},
    uncertain,
    results,
    freed() {},
  });
  const turn = () => new Promise((over) => void setImmediate(over));
  return { clock, claims, asked, turn, pool: node!.ledger.pools.get('p')! };
}

test('a job is not claimed while a node is being asked whether it has the result, and is when it has none', async () => {
  const known = Promise.withResolvers<void>();
  const { clock, claims, asked, turn, pool } = setup({ results: () => known.promise });
  claims.wake();
  clock.advance(1);
  await turn();
  expect(pool.promised, 'its slots are kept').toBe(2);
  expect(asked).toEqual([]);
  known.resolve();
  await turn();
  expect(asked.map(({ lanes }) => lanes.map(({ node }) => node))).toEqual([['node_a']]);
  await claims.close();
});

test('no more jobs are claimed than there is memory for, and more as soon as there is', async () => {
  let room = 0;
  const { clock, claims, asked, turn, pool } = setup({ room: () => room });
  claims.wake();
  clock.advance(1);
  await turn();
  expect([asked.length, pool.promised]).toEqual([0, 0]);
  room = 1;
  clock.advance(300);
  await turn();
  clock.advance(1);
  await turn();
  expect(asked.map(({ limit }) => limit)).toEqual([1]);
  await claims.close();
});

test('what a claim took whose answer was lost is looked for until the store says, and only then is claimed again', async () => {
  let away = true;
  let looks = 0;
  const answer = <T>(value: T) => (away ? Promise.reject(new Error('away')) : Promise.resolve(value));
  const { clock, claims, asked, turn } = setup({
    claimJobs: () => answer([]),
    uncertain: () => (looks++, answer(undefined)),
  });
  claims.wake();
  clock.advance(1);
  for (let look = 1; look <= 3; look++) {
    await turn();
    clock.advance(500);
    await turn();
    expect(looks).toBe(look);
  }
  expect(asked).toHaveLength(1);
  away = false;
  clock.advance(500);
  await turn();
  clock.advance(1);
  await turn();
  expect([looks, asked.length]).toEqual([4, 2]);
  await claims.close();
});
