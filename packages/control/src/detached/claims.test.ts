import { type ClaimedJob, type ClaimRequest, type NodeRecord, stepLiveness, timings } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { UNSETTLED_MOST } from '../fleet/node.ts';
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
  room_bytes = () => 64,
  results = () => Promise.resolve(),
  claimJobs = () => Promise.resolve([]),
  largest_bytes = 1,
  uncertain = () => Promise.resolve(),
}: {
  room_bytes?: () => number;
  results?: () => Promise<unknown>;
  claimJobs?: () => Promise<ClaimedJob[]>;
  largest_bytes?: number;
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
    room_bytes,
    largest_bytes,
    offer() {},
    giveBack() {},
    uncertain,
    results,
    freed() {},
  });
  const turn = () => new Promise((over) => void setImmediate(over));
  return { clock, claims, asked, turn, ready, lane, node: node!, pool: node!.ledger.pools.get('p')! };
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

test('nothing is claimed for a node whose results pile up before the store, and again once one less does', async () => {
  const { clock, claims, asked, turn, node, pool } = setup();
  node.unsettled = UNSETTLED_MOST;
  claims.wake();
  clock.advance(1);
  await turn();
  expect(claims.takeBefore(node, null)).toBe(false);
  expect([asked.length, pool.promised]).toEqual([0, 0]);
  node.unsettled--;
  claims.wake();
  clock.advance(1);
  await turn();
  expect(asked).toHaveLength(1);
  await claims.close();
});

test('no more jobs are claimed than there is memory for, and more as soon as there is', async () => {
  let room = 0;
  const { clock, claims, asked, turn, pool } = setup({ room_bytes: () => room });
  claims.wake();
  clock.advance(1);
  await turn();
  expect([asked.length, pool.promised]).toEqual([0, 0]);
  room = 1;
  clock.advance(300);
  await turn();
  clock.advance(1);
  await turn();
  expect(asked.map(({ limit }) => limit)).toEqual([2]);
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

/** As much of a job as a claim looks at. */
function job(lane: string, order_key: number, request_bytes: number): ClaimedJob {
  return { lane, order_key, request_bytes, node: 'node_a', epoch: 1, request: 'x' } as ClaimedJob;
}

test('a claim begins where the last one ended, or at what has come before that meanwhile', async () => {
  let claimed: ClaimedJob[] = [];
  const { clock, claims, asked, turn, ready, lane } = setup({ claimJobs: () => Promise.resolve(claimed) });
  const claim = async (...keys: number[]) => {
    claimed = keys.map((key) => job(lane, key, 1));
    clock.advance(1);
    await turn();
    return asked.at(-1)!.lanes.map(({ from_order_key }) => from_order_key);
  };
  claims.wake();
  ready.note(lane, 6, 0, 9);
  expect(await claim(1, 5)).toEqual([1]);
  expect(await claim(6, 7)).toEqual([5]);
  ready.note(lane, 3, 0);
  expect(await claim(3, 8)).toEqual([3]);
  expect(await claim(9, 9)).toEqual([8]);
  await claims.close();
});

test('what comes before while a claim is under way is where the next one begins', async () => {
  const answer = Promise.withResolvers<ClaimedJob[]>();
  const { clock, claims, asked, turn, ready, lane } = setup({ claimJobs: () => answer.promise });
  ready.note(lane, 9, 0, 9);
  claims.wake();
  clock.advance(1);
  await turn();
  ready.note(lane, 2, 0);
  answer.resolve([job(lane, 4, 1), job(lane, 5, 1)]);
  await turn();
  clock.advance(1);
  await turn();
  expect(asked.map(({ lanes }) => lanes[0]!.from_order_key)).toEqual([1, 2]);
  await claims.close();
});

test('a lane whose jobs were too large for the memory is not taken for empty', async () => {
  let claimed: ClaimedJob[] = [];
  const answers = { room_bytes: () => 10, largest_bytes: 10, claimJobs: () => Promise.resolve(claimed) };
  const { clock, claims, asked, turn, ready, lane } = setup(answers);
  claimed = [job(lane, 1, 8)];
  claims.wake();
  clock.advance(1);
  await turn();
  expect([asked.at(-1)!.bytes_most, ready.none]).toEqual([10, false]);
  claimed = [];
  clock.advance(1);
  await turn();
  expect([asked.length, ready.none]).toEqual([2, true]);
  await claims.close();
});

test('no answer is larger than what is read in one go, and as many slots are asked for as its like would fill', async () => {
  const MIB = 1024 * 1024;
  let claimed: ClaimedJob[] = [];
  const room = { room_bytes: () => 900 * MIB, largest_bytes: 8 * MIB };
  const answers = { ...room, claimJobs: () => Promise.resolve(claimed) };
  const { clock, claims, asked, turn, ready, lane } = setup(answers);
  const claim = async (bytes: number) => {
    claimed = [job(lane, 1, bytes)];
    ready.note(lane, 1, 0, 9);
    claims.wake();
    clock.advance(1);
    await turn();
    const { limit, bytes_most } = asked.at(-1)!;
    return [limit, bytes_most! / MIB];
  };
  expect(await claim(24 * MIB)).toEqual([2, 24]);
  expect(await claim(1)).toEqual([1, 24]);
  expect(await claim(1)).toEqual([2, 24]);
  await claims.close();
});

test('where what came meanwhile has taken the memory, nothing is claimed until there is some again', async () => {
  const returned = Promise.withResolvers<void>();
  let room = 64;
  const { clock, claims, asked, turn, pool } = setup({
    room_bytes: () => room,
    results: () => returned.promise,
  });
  claims.wake();
  clock.advance(1);
  room = 0;
  returned.resolve();
  await turn();
  expect([asked.length, pool.reserved]).toEqual([0, 0]);
  room = 64;
  clock.advance(250);
  await turn();
  clock.advance(1);
  await turn();
  expect(asked).toHaveLength(1);
  await claims.close();
});
