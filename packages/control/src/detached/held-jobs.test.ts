import { type ClaimedJob, type ResultOutcome, newFairShare, timings } from '@flotilla/core';
import { ManualClock } from '@flotilla/core/testing';
import { expect, test } from 'vitest';
import { createBodyMemory } from '../body-memory.ts';
import { fenceOf } from '../dispatch/attempt.ts';
import { createGrants } from '../dispatch/grants.ts';
import { type ModelSpot, UNSETTLED_MOST } from '../fleet/node.ts';
import { createRoster } from '../fleet/roster.ts';
import { memoryLog } from '../testing/memory-log.ts';
import { createHeldJobs } from './held-jobs.ts';
import { laneText } from './lane.ts';
import { ReadyLanes } from './ready-lanes.ts';

const claimed: ClaimedJob = {
  id: 'job_1',
  attempt: 1,
  node: 'node_a',
  epoch: 1,
  kind: 'inference',
  lane: laneText({ model: 'm', operation: 'chat', labels: {}, pin: null, avoid: [] }),
  key: 'key_1',
  model: 'm',
  operation: 'chat',
  request_id: 'r',
  order_key: 1,
  priority: 0,
  failures: 0,
  max_attempts: 3,
  on_node_loss: 'requeue',
  run_timeout_ms: 700,
  traceparent: null,
  created_at: 0,
  request: '{}',
  request_bytes: 2,
};

/** A node has the job; the store answers so to whatever becomes of it. */
function offered(outcome: ResultOutcome, more: Partial<ClaimedJob> = {}) {
  const clock = new ManualClock();
  const [node] = createRoster(clock, timings(5000)).load([record], []).added;
  const link = { heard: 0, rtt_ms: 0, open: true, offer() {}, send() {}, closeStream() {} };
  node!.link = link as never;
  const slots = node!.ledger.pools.get('p')!;
  const spot: ModelSpot = { ...SPOT, node: node!, slots };
  const said: unknown[] = [];
  const settings = {
    run_timeout_ms: 1000,
    first_byte_timeout_ms: 1000,
    idle_timeout_ms: 1000,
    result_limit_bytes: 1000,
  };
  const grants = createGrants({ clock, settings, metrics: { attemptEnded() {} }, freed() {} });
  const held = createHeldJobs({
    clock,
    log: memoryLog(),
    grants,
    places: { servedBy: () => ['m'] },
    transitions: {
      waiting: 0,
      jobs: () => [],
      add: () => Promise.resolve(outcome),
      close: () => Promise.resolve(),
    },
    watchers: { moved() {} },
    ready: new ReadyLanes(),
    share: newFairShare(),
    memory: createBodyMemory(1000),
    settings,
    woken: (in_ms) => void said.push(['woken', in_ms]),
    ended: ({ outcome, prompt_tokens }) => void said.push(['ended', outcome, prompt_tokens]),
    told: ({ job, prompt_tokens }) => void said.push(['told', job, prompt_tokens]),
    unheard: (job) => void said.push(['unheard', job]),
  });
  held.offer({ ...claimed, ...more }, spot);
  const job = held.jobs.get('job_1')!;
  return { grants, job, said };
}

/** A node has the job and says that it has failed for good; the store answers so. */
async function failedAndAnswered(outcome: ResultOutcome) {
  const { grants, job, said } = offered(outcome);
  job.current!.usage = { prompt_tokens: 7, completion_tokens: 0, cached_tokens: 0, estimated: false };
  const event = { code: 'backend_error', message: 'No.', retryable: false, retry_delay_ms: 0 } as const;
  grants.step(job, { type: 'failed', fence: fenceOf(job.current!), ...event });
  await new Promise((over) => void setImmediate(over));
  return said;
}

test('an end counts once it is in the store, also where the answer to its first writing was lost', async () => {
  expect(await failedAndAnswered('accepted')).toEqual([['ended', 'backend_error', 7]]);
  expect(await failedAndAnswered('duplicate')).toEqual([['ended', 'backend_error', 7]]);
});

test('an end that came too late is looked into, and what its node has used is told all the same', async () => {
  const late = [
    ['unheard', 'job_1'],
    ['told', 'job_1', 7],
  ];
  expect(await failedAndAnswered('stale')).toEqual(late);
  expect(await failedAndAnswered('conflict')).toEqual(late);
});

test('what goes back is looked for at once, also where the answer to its first writing was lost', async () => {
  for (const outcome of ['accepted', 'stale'] as const) {
    const { grants, job, said } = offered(outcome);
    const event = { code: 'backend_error', message: 'No.', retryable: true, retry_delay_ms: 0 } as const;
    grants.step(job, { type: 'failed', fence: fenceOf(job.current!), ...event });
    await new Promise((over) => void setImmediate(over));
    expect(said).toContainEqual(['woken', 0]);
  }
});

test('a node whose results wait for the store is given work again as soon as one less does', async () => {
  for (const [others, woken] of [
    [UNSETTLED_MOST - 1, true],
    [UNSETTLED_MOST - 2, false],
    [UNSETTLED_MOST, false],
  ] as const) {
    const { grants, job, said } = offered('accepted');
    const { node } = job.current!;
    node.unsettled = others;
    grants.step(job, { type: 'completed', fence: fenceOf(job.current!), digest: 'd' });
    expect(node.unsettled).toBe(others + 1);
    await new Promise((over) => void setImmediate(over));
    expect(node.unsettled).toBe(others);
    expect(said.some((one) => JSON.stringify(one) === '["woken",0]')).toBe(woken);
  }
});

test('a job that is lost once too often costs its prompt, by its bytes, where the backend had been asked', async () => {
  const { grants, job, said } = offered('accepted', {
    failures: 2,
    request_bytes: 4000,
    run_timeout_ms: null,
  });
  const fence = fenceOf(job.current!);
  grants.step(job, { type: 'started', fence });
  job.current!.asked = true;
  grants.step(job, { type: 'node_lost', fence, retry_delay_ms: 0 });
  await new Promise((over) => void setImmediate(over));
  expect(said).toEqual([['ended', 'attempts_exhausted', 1000]]);
});

test('a job that starts is looked at again when its time is over', async () => {
  const { job, said } = offered('accepted');
  job.sink.started(job.current!);
  await new Promise((over) => void setImmediate(over));
  expect(said).toEqual([['woken', 700]]);
});

const SPOT = {
  model: 'm',
  backend: 'b',
  operations: ['chat'],
  loaded: true,
  backend_health: 'healthy',
  model_health: 'healthy',
} as const;

const record = {
  id: 'node_a',
  name: 'a',
  labels: {},
  allowed_models: [],
  state: 'offline' as const,
  cordoned: false,
  drain_deadline_at: null,
  epoch: 1,
  descriptor: {
    name: 'a',
    labels: {},
    version: '1',
    pools: [{ id: 'p', capacity: 2, capacity_from: 'config' as const }],
    backends: [{ id: 'b', kind: 'x', pool: 'p', models: [{ id: 'm', operations: ['chat' as const] }] }],
  },
  descriptor_hash: 'h',
  close_reason: null,
  created_at: 0,
  last_seen_at: 0,
  revoked_at: null,
  credentials: [],
};
