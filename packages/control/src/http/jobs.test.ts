import type { JobFilter, PageRequest, StoredJob } from '@flotilla/core';
import type { JobView } from '@flotilla/protocol';
import { describe, expect, test } from 'vitest';
import { principalOf } from '../accounts/keys.ts';
import { keyRecord } from '../testing/key-record.ts';
import { type JobRouteDeps, jobRoutes } from './jobs.ts';

const id = (n: number) => `job_${String(n).padStart(26, '0')}`;
const own = principalOf(keyRecord({ id: 'key_own', scopes: ['jobs'] }));
const reader = principalOf(keyRecord({ id: 'key_own', scopes: ['jobs', 'nodes:read'] }));
const admin = principalOf(keyRecord({ id: 'key_admin', role: 'admin' }));

const attempt = { attempt: 1, backend: 'b', outcome: 'succeeded', code: null, message: null };

function storedJob(n: number, change: Partial<StoredJob> = {}): StoredJob {
  return {
    id: id(n),
    kind: 'inference',
    attached: true,
    state: 'succeeded',
    replica: 'rep',
    key: 'key_own',
    model: 'm',
    operation: 'chat',
    request_id: 'r',
    order_key: 0,
    error_code: null,
    error_message: null,
    created_at: n,
    finished_at: n + 1,
    attempts: [
      { ...attempt, node: 'node_1', provider: null, epoch: 4, offered_at: 0, started_at: 1, ended_at: null },
    ],
    ...change,
  };
}

function openJob(n: number, change: Partial<JobView> = {}): JobView {
  const time = new Date(0).toISOString();
  return {
    id: id(n),
    kind: 'inference',
    attached: true,
    state: 'running',
    model: 'm',
    operation: 'chat',
    key: 'key_own',
    request_id: 'r',
    position: null,
    attempts: [
      { ...attempt, node: 'node_1', provider: null, offered_at: time, started_at: null, ended_at: null },
    ],
    error: null,
    created_at: time,
    finished_at: null,
    ...change,
  };
}

function setup(stored: StoredJob[], open: JobView[]) {
  const cancelled: string[] = [];
  const store = {
    findJob: (wanted: string) => Promise.resolve(stored.find((job) => job.id === wanted)),
    findDetached: () => Promise.resolve(undefined),
    listJobs(filter: JobFilter, { limit, after }: PageRequest) {
      const rows = stored
        .filter((job) => filter.key === undefined || job.key === filter.key)
        .filter((job) => filter.state === undefined || job.state === filter.state)
        .filter((job) => after === undefined || job.id < after)
        .sort((a, b) => (a.id < b.id ? 1 : -1));
      const kept = rows.slice(0, limit);
      return Promise.resolve({ rows: kept, next_after: rows.length > limit ? kept.at(-1)!.id : null });
    },
  };
  const routes = jobRoutes({
    recorded: () => Promise.resolve(),
    open: {
      list: () => open,
      find: (wanted) => open.find((job) => job.id === wanted),
      explain: (wanted) => ({
        id: wanted,
        state: 'running',
        summary: 's',
        nodes: [{ node: 'node_1', name: 'box', verdict: 'has it', reasons: [] }],
      }),
      explainElsewhere: () => Promise.resolve(undefined),
      cancel: (wanted) => Promise.resolve((cancelled.push(wanted), 'cancelled' as const)),
    },
    store: store as unknown as JobRouteDeps['store'],
    results: { load: () => Promise.resolve({ result: null, erase_at: null }), isJson: () => true },
    detached: {
      cancel: (wanted) => Promise.resolve((cancelled.push(wanted), { refused: 'ended' as const })),
    },
    places: { tiers: () => [] },
    everywhere: () => [],
  });
  type Call = Parameters<typeof routes.listJobs>[0];
  const call = (principal: typeof own, more: Partial<Call>) => ({ principal, ...more }) as never;
  const list = async (principal: typeof own, query: Record<string, unknown>) =>
    routes.listJobs(call(principal, { query: { limit: 50, ...query } as Call['query'] }));
  const one = (principal: typeof own, wanted: string) => call(principal, { params: { id: wanted } as never });
  return { routes, list, one, cancelled };
}

describe('the list of jobs', () => {
  test('is open and ended ones, newest first; where both know one, memory is newer', async () => {
    const { list } = setup([storedJob(1), storedJob(3, { state: 'queued' })], [openJob(2), openJob(3)]);
    const { data } = await list(own, {});
    expect(data.map((job) => [job.id, job.state])).toEqual([
      [id(3), 'running'],
      [id(2), 'running'],
      [id(1), 'succeeded'],
    ]);
    expect((await list(own, { state: 'queued' })).data).toEqual([]);
  });

  test('pages without a job lost or told twice', async () => {
    const stored = [1, 2, 4, 6, 7, 9].map((n) => storedJob(n));
    const { list } = setup(
      [...stored, storedJob(5, { state: 'queued' })],
      [3, 5, 8].map((n) => openJob(n)),
    );
    for (const limit of [1, 2, 3, 4, 9]) {
      const found: string[] = [];
      let after: string | undefined;
      do {
        const page = await list(own, { limit, ...(after !== undefined && { after }) });
        expect(page.data.length).toBeLessThanOrEqual(limit);
        found.push(...page.data.map((job) => job.id));
        after = page.next_after ?? undefined;
      } while (after !== undefined);
      expect(found, `pages of ${limit}`).toEqual([9, 8, 7, 6, 5, 4, 3, 2, 1].map(id));
    }
  });

  test('has another key’s jobs for an admin only', async () => {
    const { list } = setup([storedJob(1, { key: 'key_other' })], [openJob(2, { key: 'key_other' })]);
    expect((await list(own, {})).data).toEqual([]);
    expect((await list(admin, {})).data).toHaveLength(2);
  });
});

describe('one job', () => {
  test('of another key does not exist, in memory or in the store', async () => {
    const { routes, one, cancelled } = setup(
      [storedJob(1, { key: 'key_other' })],
      [openJob(2, { key: 'key_other' })],
    );
    for (const wanted of [id(1), id(2), id(9), 'nonsense']) {
      for (const route of [routes.showJob, routes.explainJob, routes.cancelJob]) {
        await expect(route(one(own, wanted))).rejects.toMatchObject({ code: 'not_found' });
      }
    }
    expect(cancelled).toEqual([]);
    await expect(routes.showJob(one(admin, id(1)))).resolves.toMatchObject({ id: id(1) });
  });

  test('tells which node served only to who may read nodes', async () => {
    const { routes, one } = setup([storedJob(1)], []);
    expect((await routes.showJob(one(own, id(1)))).attempts[0]).toMatchObject({ node: null, backend: null });
    expect((await routes.showJob(one(reader, id(1)))).attempts[0]).toMatchObject({ node: 'node_1' });
    expect(JSON.stringify(await routes.explainJob(one(own, id(1))))).not.toMatch(/node_1|box/);
  });

  test('that is open is cancelled once; one that has ended cannot be', async () => {
    const { routes, one, cancelled } = setup(
      [storedJob(1), storedJob(3, { state: 'cancelled' })],
      [openJob(2)],
    );
    expect(await routes.cancelJob(one(own, id(2)))).toMatchObject({
      state: 'cancelled',
      error: { code: 'cancelled' },
    });
    expect(cancelled).toEqual([id(2)]);
    expect(await routes.cancelJob(one(own, id(3)))).toMatchObject({ state: 'cancelled' });
    await expect(routes.cancelJob(one(own, id(1)))).rejects.toMatchObject({ code: 'conflict' });
  });

  test('that is detached and was cancelled before is looked after again: its node may not have heard', async () => {
    const { routes, one, cancelled } = setup([storedJob(3, { attached: false, state: 'cancelled' })], []);
    expect(await routes.cancelJob(one(own, id(3)))).toMatchObject({ state: 'cancelled' });
    expect(cancelled).toEqual([id(3)]);
  });
});
