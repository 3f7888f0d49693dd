import type { JobRecord, Settlement } from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import fc from 'fast-check';
import { aDetachedJob, aFinish, aRequeue } from '../conformance/detached-rows.ts';
import { aJob, aSettlement, T0 } from '../conformance/rows.ts';
import { type Call, call, once, START } from './store-calls.ts';
import type { Database } from './store/database.ts';
import type { JobRow } from './store/tables.ts';

const DAY_MS = 86_400_000;

/** Whoever sends a job again sends it with the same key and idempotency. */
const KEYS = [
  { key: 'key_a', idempotency: { key: 'i1', body_hash: 'h1' } },
  { key: 'key_a', idempotency: { key: 'i1', body_hash: 'h1' } },
  { key: 'key_a', idempotency: { key: 'i1', body_hash: 'h2' } },
  { key: null, idempotency: { key: 'i1', body_hash: 'h1' } },
  { key: null, idempotency: { key: 'i1', body_hash: 'h1' } },
  { key: null, idempotency: null },
  { key: 'key_b', idempotency: null },
];
const JOBS = KEYS.map((_, n) => makeId('job', T0 + n, new Uint8Array(10)));
const ATTACHED = makeId('job', T0 - 5, new Uint8Array(10));
const NODES = ['node_a', 'node_b', 'prv_c'];

const job = fc.constantFrom(...JOBS);
const node = fc.constantFrom(...NODES);
const lane = fc.constantFrom('lane_x', 'lane_x', 'lane_y');
const epoch = fc.integer({ min: 1, max: 3 });
const text = fc.constantFrom('{}', '{"messages":[]}', 'süß 😀', 'a\0b');
const limit = fc.constantFrom(1, 100);
const batch = <T>(item: fc.Arbitrary<T>) => fc.array(item, { minLength: 1, maxLength: 3 });

/** One of the jobs that are so when the call is made, and which part of its fence is off. */
interface Aim {
  among: 'held' | 'waiting' | 'ended' | 'any';
  pick: number;
  off: '' | 'attempt' | 'node' | 'epoch';
}
const aimAt = (...among: Aim['among'][]): fc.Arbitrary<Aim> =>
  fc.record({
    among: fc.constantFrom(...among),
    pick: fc.nat(5),
    off: fc.constantFrom(...(['', '', '', '', '', 'attempt', 'node', 'epoch'] as const)),
  });
const aim = aimAt('held', 'held', 'held', 'waiting', 'ended', 'any');

function aimed({ among, pick }: Aim, database: Database): JobRow | undefined {
  const matching = [...database.jobs()].filter(({ state, attempt }) => {
    if (among === 'held') return state === 'leased' || state === 'running';
    if (among === 'waiting') return state === 'queued' && attempt > 0;
    return among === 'any' || (state !== 'queued' && state !== 'leased' && state !== 'running');
  });
  return matching[pick % Math.max(1, matching.length)];
}

/** Of a job that waits: that of the attempt before. */
function fenceOf(target: Aim, database: Database) {
  const row = aimed(target, database);
  const last = database.attemptsOf(row?.id ?? '').find(({ attempt }) => attempt === row?.attempt);
  const fence = {
    id: row?.id ?? JOBS[target.pick]!,
    attempt: row?.attempt ?? 1,
    node: row?.node ?? last?.node ?? 'node_a',
    epoch: row?.epoch ?? last?.epoch ?? 1,
  };
  if (target.off === 'attempt') return { ...fence, attempt: Math.max(0, fence.attempt - 1) };
  if (target.off === 'node') return { ...fence, node: fence.node === 'node_a' ? 'node_b' : 'node_a' };
  return target.off === 'epoch' ? { ...fence, epoch: fence.epoch + 1 } : fence;
}

/** Fewer than all only where no two are due at the same moment: the port does not say which is first. */
function atMost(most: number, due: (number | null)[]): number {
  const times = due.filter((ms) => ms !== null);
  return new Set(times).size === times.length ? most : 100;
}

const acceptJobs = call(
  'acceptJobs',
  batch(
    fc.record({
      id: job,
      lane,
      order_key: fc.integer({ min: 0, max: 3 }),
      priority: fc.integer({ min: -1, max: 1 }),
      request: text,
      retention_ms: fc.constantFrom(0, 40),
      queue_timeout_ms: fc.constantFrom(50, 400),
      run_timeout_ms: fc.constantFrom(null, 0, 30),
      reserved_tokens: fc.constantFrom(0, 7),
      created_at: fc.constantFrom(T0, START + 50),
    }),
  ),
  (told) => [
    told.map((over) => aDetachedJob({ request_id: 'req', ...KEYS[JOBS.indexOf(over.id)], ...over })),
  ],
);

const claimJobs = call(
  'claimJobs',
  fc.record({
    lanes: fc.uniqueArray(
      fc.record(
        { lane, node, epoch, free: fc.constantFrom(0, 1, 1, 2, 3), from_order_key: fc.constantFrom(0, 1, 2) },
        { requiredKeys: ['lane', 'node', 'epoch', 'free'] },
      ),
      { minLength: 1, maxLength: 4, selector: (want) => `${want.lane} ${want.node}` },
    ),
    limit: fc.constantFrom(0, 1, 2, 4),
    bytes_most: fc.constantFrom(0, 20, 1000),
  }),
  (told) => [{ replica: 'rep_a', ...told }],
);

const startJobs = call('startJobs', batch(aim), (told, database) => [
  told.map((target) => fenceOf(target, database)),
]);

const requeueJobs = call(
  'requeueJobs',
  batch(
    fc.record({
      aim,
      lane,
      message: fc.constantFrom('full', 'full', null),
      outcome: fc.constantFrom('rejected', 'rejected', 'node_lost'),
      delay_ms: fc.constantFrom(0, 0, 25),
      counts: fc.boolean(),
      digest: fc.constantFrom(null, null, 'd1', 'd2'),
    }),
  ),
  (told, database) => [told.map(({ aim: target, ...over }) => aRequeue(fenceOf(target, database), over))],
);

const finishJobs = call(
  'finishJobs',
  fc.array(
    fc.record({
      aim,
      state: fc.constantFrom('succeeded' as const, 'failed' as const),
      error_code: fc.constantFrom(null, 'backend_error'),
      digest: fc.constantFrom('d1', 'd2'),
      result: fc.option(text),
      counted: fc.boolean(),
      provisional: fc.boolean(),
      ago_ms: fc.constantFrom(undefined, 0, 7),
    }),
    { minLength: 1, maxLength: 2 },
  ),
  (told, database) => [
    told.map(({ aim: target, counted, ago_ms, ...over }) => {
      const fence = fenceOf(target, database);
      const { usage } = aSettlement(
        { id: fence.id, request_id: 'req' },
        { node: fence.node, attempts: fence.attempt },
      );
      return aFinish(fence, {
        ...over,
        usage: counted ? usage : null,
        ...(ago_ms !== undefined && { started_ago_ms: ago_ms }),
      });
    }),
  ],
);

const keepJobs = call(
  'keepJobs',
  fc.record({
    stranger: fc.constantFrom(null, null, null, ...NODES),
    epoch,
    items: batch(
      fc.record({ aim: aimAt('held', 'waiting'), finished: fc.boolean(), wants_request: fc.boolean() }),
    ),
  }),
  ({ stranger, epoch: since, items }, database) => {
    const fences = items.map(({ aim: target, ...item }) => ({ ...fenceOf(target, database), ...item }));
    const inventory = fences.map(({ id, attempt, finished, wants_request }) => ({
      id,
      attempt,
      finished,
      wants_request,
    }));
    return [stranger ?? fences[0]!.node, since, 'rep_b', once(inventory, ({ id }) => id)];
  },
  'unordered',
);

const correctUsage = call(
  'correctUsage',
  batch(
    fc.record({
      aim: aimAt('ended'),
      prompt_tokens: fc.constantFrom(0, 11),
      completion_tokens: fc.constantFrom(0, 22),
      cached_tokens: fc.constant(0),
      estimated: fc.boolean(),
    }),
  ),
  (told, database) => {
    const words = told.map(({ aim: target, ...counts }) => {
      const { id, attempt, node: told_by } = fenceOf(target, database);
      return { job: id, attempt, node: told_by, ...counts };
    });
    return [once(words, (word) => word.job)];
  },
);

const spared = fc.subarray([...NODES, ...JOBS.slice(0, 2)], { maxLength: 2 });
const expireJobs = call(
  'expireJobs',
  fc.record({ limit, spared }),
  (told, database) => [
    atMost(
      told.limit,
      [...database.jobs()].map((row) => row.deadline_at),
    ),
    told.spared,
  ],
  'unordered',
);
const readyJobs = call(
  'readyJobs',
  limit,
  (told, database) => [
    atMost(
      told,
      [...database.jobs()].map(({ not_before }) => not_before),
    ),
  ],
  'unordered',
);
const eraseBodies = call('eraseBodies', limit, (told, { tables }) => [
  atMost(
    told,
    [...tables.bodies.values()].map(({ erase_at }) => erase_at),
  ),
]);

/**
 * Attached ones, and detached ones only without an idempotency key: where one job is found by id and another one by key,
 * nothing is promised.
 */
const opened = fc
  .record({
    id: fc.constantFrom(ATTACHED, ATTACHED, ...JOBS.slice(5)),
    key: fc.constantFrom('key_a', null),
    replica: fc.constantFrom('rep_a', 'rep_b'),
  })
  .map((over): JobRecord => aJob({ request_id: 'req', ...over }));
const settled = fc
  .record({ job: opened, state: fc.constantFrom('succeeded' as const, 'failed' as const) })
  .map((told): Settlement => aSettlement({ ...told.job, state: told.state }));

/** By so much, or until something is due that very moment. */
const wait = call('wait', fc.constantFrom(1, 10, 60, 'due', 'over', 'erased'), (told, database) => {
  if (typeof told === 'number') return [told];
  const now = database.tables.now_ms();
  const times = {
    due: [...database.jobs()].map(({ deadline_at }) => deadline_at),
    over: [...database.jobs()].map(({ not_before }) => not_before),
    erased: [...database.tables.bodies.values()].map(({ erase_at }) => erase_at),
  }[told as 'due' | 'over' | 'erased'];
  const next = times.filter((ms) => ms !== null && ms > now) as number[];
  return [next.length === 0 ? 1 : Math.min(...next) - now];
});

const sweep = call(
  'sweep',
  fc.record({
    usage_ms: fc.constantFrom(0, 90 * DAY_MS),
    late_ms: fc.constantFrom(-1, 0, 60, 3 * DAY_MS, 60 * DAY_MS),
  }),
  ({ usage_ms, late_ms }) => [{ jobs_ms: 0, usage_ms, audit_ms: 0, batch: 100 }, START + late_ms],
);
const readyLanes = call('readyLanes', fc.record({ limit, after: fc.constantFrom('', 'lane_x') }), (told) => [
  told.limit,
  told.after,
]);

/** A node takes what there is, and will not have it. */
const refusals = node.chain((by) =>
  fc.tuple(
    call('claimJobs', epoch, (since) => [
      {
        replica: 'rep_a',
        lanes: ['lane_x', 'lane_y'].map((name) => ({ lane: name, node: by, epoch: since, free: 3 })),
        limit: 4,
      },
    ]),
    wait,
    call('requeueJobs', fc.constantFrom('full', 'full', 'draining', null), (message, database) => {
      const held = [...database.jobs()].filter(({ state }) => state === 'leased' || state === 'running');
      const refusal = { outcome: 'rejected', message, counts: false };
      return [
        held.map(({ id, attempt, node: of, epoch: since }) =>
          aRequeue({ id, attempt, node: of!, epoch: since! }, { ...refusal, lane: 'lane_x' }),
        ),
      ];
    }),
  ),
);

const CALLS: [number, fc.Arbitrary<Call>][] = [
  [6, acceptJobs],
  [9, claimJobs],
  [6, startJobs],
  [8, requeueJobs],
  [4, finishJobs],
  [5, keepJobs],
  [2, call('cancelJob', job, (id) => [id, 'No.'])],
  [3, expireJobs],
  [3, readyJobs],
  [4, correctUsage],
  [2, readyLanes],
  [2, call('nextDue', spared)],
  [2, call('findDetached', job)],
  [2, call('findJob', job)],
  [1, call('jobMarks', fc.subarray(JOBS), undefined, 'unordered')],
  [1, call('findUsage', fc.subarray(JOBS), undefined, 'unordered')],
  [1, call('heldJobs', node)],
  [1, call('heldNodes', fc.constant(null), () => [])],
  [1, call('loadReservations', limit)],
  [1, call('loadBodies', job)],
  [1, call('measureResult', job)],
  [1, call('deleteBodies', job)],
  [2, eraseBodies],
  [2, call('recordOpen', batch(opened))],
  [2, call('settle', batch(settled))],
  [2, call('endOrphans', fc.constantFrom('rep_a', 'rep_b'), (replica) => [replica, START])],
  [2, sweep],
  [6, wait],
];

/** About few jobs, nodes and lanes: most name a job that they can move, by the fence that counts; some are off. */
export const jobCalls: fc.Arbitrary<Call[]> = fc
  .array(
    fc.oneof(...CALLS.map(([weight, arbitrary]) => ({ weight, arbitrary: arbitrary.map((one) => [one]) })), {
      weight: 4,
      arbitrary: refusals,
    }),
    { minLength: 1, maxLength: 50, size: 'max' },
  )
  .map((parts) => parts.flat());
