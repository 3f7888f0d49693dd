import type { JobFilter } from '@flotilla/core';
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { countBudget } from '../../packages/control/src/store/draw-limits.ts';
import { openEngine, openStore } from '../../packages/control/src/store/open.ts';
import { listJobs } from '../../packages/control/src/store/list-jobs.ts';
import { saveNodeStates } from '../../packages/control/src/store/save-node-states.ts';
import type { Engine, Sql } from '../../packages/control/src/store/sql.ts';
import { storeOn } from '../../packages/control/src/store/store.ts';
import { type Place, quiet } from '../support/store.ts';
import { aDetachedJob, aFinish, aRequeue } from './detached-rows.ts';
import { aJob, aSettlement, T0 } from './rows.ts';
import type { EngineSubject } from './store.suite.ts';

interface Plan {
  'Node Type': string;
  'Relation Name'?: string;
  'Index Name'?: string;
  'Index Cond'?: string;
  'Actual Rows'?: number;
  'Actual Loops'?: number;
  'Rows Removed by Filter'?: number;
  'Rows Removed by Join Filter'?: number;
  Plans?: Plan[];
}

/**
 * Tables that grow with use: a statement that reads one from end to end is a fault. The nodes' tables grow with the
 * fleet only, and what writes to hundreds of nodes at once may well read all of a few thousand narrow rows.
 */
const GROWING = ['jobs', 'attempts', 'usage', 'job_bodies', 'audit', 'model_discoveries', 'model_catalogues'];

/** Runs an operation against an engine that only explains, and returns what its plans use and read whole. */
export async function planOn(
  sql: Sql,
  operation: (store: EngineSubject['store'], explain: Sql) => Promise<unknown>,
) {
  const plans: Plan[] = [];
  const explain: Sql = {
    async query<Row>(statement: Parameters<Sql['query']>[0], params = []) {
      const text = typeof statement === 'string' ? statement : statement.text;
      const rows = await sql.query<{ 'QUERY PLAN': { Plan: Plan }[] }>(
        `explain (format json) ${text}`,
        params,
      );
      plans.push(...rows.flatMap((row) => row['QUERY PLAN'].map(({ Plan }) => Plan)));
      return [] as Row[];
    },
    transaction: (run) => run(explain),
  };
  await operation(storeOn({ ...explain, kind: 'embedded' } as Engine, quiet), explain).catch(
    (error: unknown) => {
      if (plans.length === 0) throw error; // an operation may miss the rows that only a real answer has
    },
  );
  const nodes = plans.flatMap(flatten);
  return {
    nodes,
    indexes: nodes.flatMap((node) => node['Index Name'] ?? []),
    scanned: nodes
      .filter((node) => node['Node Type'] === 'Seq Scan' && GROWING.includes(node['Relation Name'] ?? ''))
      .map((node) => node['Relation Name']),
  };
}

/** Of a store that nobody has used: what is planned then is kept, and tables grow under it. */
export function firstPlansSuite(name: string, makePlace: () => Promise<Place>): void {
  test(`on ${name}, tables that are empty and were never analyzed are read by their indexes`, async () => {
    const place = await makePlace();
    onTestFinished(() => place.drop());
    await (await openStore(place.options, quiet)).close();
    const engine = await openEngine(place.options, quiet);
    onTestFinished(() => engine.close());
    const fence = { id: 'job_1', attempt: 1, node: 'node_1', epoch: 1 };
    const lanes = [{ lane: 'lane_1', node: 'node_1', epoch: 1, free: 4 }];
    const hot: Record<string, Parameters<typeof planOn>[1]> = {
      accept: (s) => s.acceptJobs([aDetachedJob()]),
      claim: (s) => s.claimJobs({ replica: 'rep_a', lanes, limit: 4 }),
      start: (s) => s.startJobs([fence]),
      requeue: (s) => s.requeueJobs([aRequeue(fence)]),
      finish: (s) => s.finishJobs([aFinish(fence)]),
      expire: (s) => s.expireJobs(100, ['node_x']),
      ready: (s) => s.readyJobs(100),
      settle: (s) => s.settle([aSettlement()]),
      open: (s) => s.recordOpen([aJob()]),
    };
    for (const [hot_name, operation] of Object.entries(hot)) {
      const { scanned } = await planOn(engine, operation);
      expect({ hot_name, scanned }).toEqual({ hot_name, scanned: [] });
    }
  }, 60_000);
}

export function plansSuite(subject: EngineSubject): void {
  const fence = { id: 'job_100', attempt: 1, node: 'node_1', epoch: 1 };
  const page = { limit: 50 };
  const sweep = { jobs_ms: 0, usage_ms: 0, audit_ms: 0, batch: 10 };
  const day = { since: T0, until: T0 + 5_000 };

  const planOf = (operation: Parameters<typeof planOn>[1], sql: Sql = subject.sql) => planOn(sql, operation);

  describe('plans', () => {
    beforeAll(async () => {
      for (const statement of SEED) await subject.sql.query(statement);
    }, 60_000);

    const cases: [string, string, (store: EngineSubject['store']) => Promise<unknown>][] = [
      ['find-job', 'jobs_pkey', (s) => s.findJob('job_100')],
      ['find-job, its attempts', 'attempts_pkey', (s) => s.findJob('job_100')],
      ['end-orphans', 'jobs_attached_open', (s) => s.endOrphans('rep_b', 1)],
      ['jobs, newest', 'jobs_pkey', (s) => s.listJobs({}, page)],
      ['jobs, a further page', 'jobs_pkey', (s) => s.listJobs({}, { limit: 50, after: 'job_500' })],
      ['jobs of a key, ended', 'jobs_ended_by_key', (s) => s.listJobs({ key: 'key_7' }, page)],
      ['jobs of a key, open', 'jobs_open_by_key', (s) => s.listJobs({ key: 'key_7' }, page)],
      [
        'jobs of a key that wait',
        'jobs_open_by_key',
        (s) => s.listJobs({ key: 'key_7', state: 'queued' }, page),
      ],
      ['jobs of a model, ended', 'jobs_ended_by_model', (s) => s.listJobs({ model: 'model-7' }, page)],
      ['jobs of a model, queued', 'jobs_queued_by_model', (s) => s.listJobs({ model: 'model-7' }, page)],
      ['jobs of a model, at work', 'jobs_by_node', (s) => s.listJobs({ model: 'model-7' }, page)],
      ['jobs of a model, attached', 'jobs_attached_open', (s) => s.listJobs({ model: 'model-7' }, page)],
      ['jobs that failed', 'jobs_ended_by_state', (s) => s.listJobs({ state: 'failed' }, page)],
      ['jobs that wait', 'jobs_queued_by_model', (s) => s.listJobs({ state: 'queued' }, page)],
      ['jobs that run', 'jobs_by_node', (s) => s.listJobs({ state: 'running' }, page)],
      ['usage, newest', 'usage_by_time', (s) => s.listUsage({}, page)],
      ['usage of a key', 'usage_by_key', (s) => s.listUsage({ key: 'key_7' }, page)],
      ['usage of a model', 'usage_by_model', (s) => s.listUsage({ model: 'model-7' }, page)],
      ['usage of a node', 'usage_by_node', (s) => s.listUsage({ node: 'node_7' }, page)],
      ['usage of a provider', 'usage_by_provider', (s) => s.listUsage({ provider: 'prv_7' }, page)],
      ['usage of a time', 'usage_by_time', (s) => s.listUsage(day, { limit: 50, after: 'job_500' })],
      ['usage of a time, summed', 'usage_by_time', (s) => s.summarizeUsage(day, 'model')],
      ['sweep of jobs', 'jobs_pkey', (s) => s.sweep(sweep, T0)],
      ['sweep of usage', 'usage_by_time', (s) => s.sweep(sweep, T0)],
      ['audit, newest', 'audit_pkey', (s) => s.listAudit({}, page)],
      ['audit of a time', 'audit_pkey', (s) => s.listAudit({ since: T0, until: T0 + 60_000 }, page)],
      ['audit of a key', 'audit_by_key', (s) => s.listAudit({ key: 'key_7' }, page)],
      ['audit of a target', 'audit_by_target', (s) => s.listAudit({ target: 'node_7' }, page)],
      ['sweep of audit', 'audit_pkey', (s) => s.sweep(sweep, T0)],
      ['sweep of credentials', 'node_credentials_by_end', (s) => s.sweep(sweep, T0)],
      [
        'claim-jobs',
        'jobs_ready',
        (s) =>
          s.claimJobs({
            replica: 'rep_a',
            lanes: [{ lane: 'lane_1', node: 'node_1', epoch: 1, free: 4 }],
            limit: 4,
          }),
      ],
      ['start-jobs', 'jobs_pkey', (s) => s.startJobs([fence])],
      ['requeue-jobs', 'jobs_pkey', (s) => s.requeueJobs([aRequeue(fence)])],
      ['finish-jobs', 'jobs_pkey', (s) => s.finishJobs([aFinish(fence)])],
      ['expire-jobs', 'jobs_deadline', (s) => s.expireJobs(100, ['node_x'])],
      ['ready-jobs', 'jobs_back_off', (s) => s.readyJobs(100)],
      ['held-jobs', 'jobs_by_node', (s) => s.heldJobs('node_1')],
      [
        'keep-jobs',
        'jobs_pkey',
        (s) =>
          s.keepJobs('node_1', 2, 'rep_a', [
            { id: 'job_100', attempt: 1, finished: true, wants_request: true },
          ]),
      ],
      ['job-marks', 'jobs_pkey', (s) => s.jobMarks(['job_100', 'job_d7'])],
      ['requeue-jobs, an equal rejection', 'attempts_pkey', (s) => s.requeueJobs([aRequeue(fence)])],
      ['held-nodes', 'jobs_by_node', (s) => s.heldNodes()],
      ['ready-lanes', 'jobs_ready', (s) => s.readyLanes(100, '')],
      ['next-due', 'jobs_deadline', (s) => s.nextDue(['node_x'])],
      ['load-reservations', 'jobs_open_by_key', (s) => s.loadReservations(100)],
      ['find-usage', 'usage_pkey', (s) => s.findUsage(['job_100'])],
      [
        'correct-usage',
        'usage_pkey',
        (s) =>
          s.correctUsage([
            {
              job: 'job_100',
              attempt: 1,
              node: 'node_1',
              prompt_tokens: 1,
              completion_tokens: 1,
              cached_tokens: 0,
              estimated: false,
            },
          ]),
      ],
      ['cancel-job', 'jobs_pkey', (s) => s.cancelJob('job_100', 'x')],
      ['erase-bodies', 'job_bodies_by_end', (s) => s.eraseBodies(100)],
      ['find-discovery', 'model_discoveries_pkey', (s) => s.findDiscovery('disc_100')],
      ['open-discoveries', 'model_discoveries_open', (s) => s.openDiscoveries(100)],
      [
        'open-discovery, what is in flight',
        'model_discoveries_in_flight',
        (s) => s.openDiscovery({ id: 'disc_x', node: 'node_1', backend: null, timeout_ms: 1, refused: null }),
      ],
      [
        'open-discovery, what was just refused',
        'model_discoveries_by_node',
        (s) =>
          s.openDiscovery({ id: 'disc_x', node: 'node_1', backend: null, timeout_ms: 1, refused: 'offline' }),
      ],
      [
        'note-discoveries',
        'model_discoveries_pkey',
        (s) => s.noteDiscoveries([{ id: 'disc_1', node: 'node_1', stage: 'listing', waiting_for: null }]),
      ],
      [
        'finish-discovery',
        'model_discoveries_pkey',
        (s) =>
          s.finishDiscovery({
            id: 'disc_1',
            node: 'node_1',
            state: 'failed',
            reason: 'offline',
            stage: null,
            waiting_for: null,
            results: [],
          }),
      ],
      [
        'sweep of discoveries',
        'model_discoveries_pkey',
        (s) => s.sweep({ jobs_ms: 0, usage_ms: 0, audit_ms: 0, batch: 10 }, T0),
      ],
      ['load-catalogues', 'model_catalogues_pkey', (s) => s.loadCatalogues('node_1')],
      ['accept-jobs, the look for a replay', 'jobs_idempotency', (s) => s.acceptJobs([aDetachedJob()])],
    ];
    test.each(cases)('%s uses %s and reads no growing table whole', async (_name, index, operation) => {
      const { indexes, scanned } = await planOf(operation);
      expect(indexes).toContain(index);
      expect(scanned).toEqual([]);
    });

    test('a claim reads the heads of its lanes in the order of the index, and sorts no lane', async () => {
      const lanes = [{ lane: 'lane_1', node: 'node_1', epoch: 1, free: 4 }];
      const { nodes } = await planOf((s) => s.claimJobs({ replica: 'rep_a', lanes, limit: 4 }));
      const limits = nodes.filter((node) => node['Node Type'] === 'Limit').map(flatten);
      const heads = limits.find((plan) => plan.at(-1)?.['Index Name'] === 'jobs_ready');
      expect(heads?.slice(-3).map((node) => node['Node Type'])).toEqual(['Limit', 'LockRows', 'Index Scan']);
      expect(heads?.at(-1)?.['Index Cond']).toContain('lane =');
    });

    test('a claim from a long line looks up what it takes, and reads neither jobs nor bodies whole', async () => {
      const undo = new Error('only to look');
      const looked = subject.sql.transaction(async (sql) => {
        for (const statement of LONG_LINE) await sql.query(statement);
        const lanes = [{ lane: 'lane_long', node: 'node_1', epoch: 1, free: 4 }];
        const { indexes, scanned } = await planOf(
          (s) => s.claimJobs({ replica: 'rep_a', lanes, limit: 4 }),
          sql,
        );
        expect(indexes).toEqual(expect.arrayContaining(['jobs_ready', 'jobs_pkey', 'job_bodies_pkey']));
        expect(scanned).toEqual([]);
        throw undo;
      });
      await expect(looked).rejects.toBe(undo);
    });

    test('a listing reads a few rows a page, while a line of jobs waits that do not match', async () => {
      const undo = new Error('only to look');
      const looked = subject.sql.transaction(async (sql) => {
        for (const statement of LONG_LINE) await sql.query(statement);
        const filters: JobFilter[] = [
          { key: 'key_7' },
          { model: 'model-7' },
          ...[undefined, 'key_7'].flatMap((key) =>
            (['queued', 'leased', 'running', 'failed'] as const).map((state) => ({
              state,
              ...(key && { key }),
            })),
          ),
          { model: 'model-7', state: 'succeeded' },
        ];
        for (const filter of filters) {
          const { measure, most_rows } = measuring(sql);
          await listJobs(measure, filter, page);
          // What is at work is read whole: 3,000 jobs. The line is 40,000.
          expect({ filter, few: most_rows() < 5000 }).toEqual({ filter, few: true });
        }
        throw undo;
      });
      await expect(looked).rejects.toBe(undo);
    });

    test('the counting of a budget reads the usage of its key, and of jobs those that are open', async () => {
      const { indexes, scanned } = await planOf((_store, sql) => countBudget(sql, 'key_7', T0));
      expect(indexes).toEqual(expect.arrayContaining(['usage_by_key', 'jobs_open_by_key']));
      expect(scanned).toEqual([]);
    });

    test('states of many nodes are matched with their rows, and not with each other', async () => {
      const count = 2000;
      const undo = new Error('only to look');
      const looked = subject.sql.transaction(async (sql) => {
        const { measure, most_rows } = measuring(sql);
        const changes = Array.from({ length: count }, (_, at) => ({
          id: `node_${at + 1}`,
          epoch: 1,
          state: 'online' as const,
          close_reason: null,
          at: T0,
        }));
        await saveNodeStates(measure, changes);
        expect(most_rows()).toBeGreaterThanOrEqual(count);
        // Each with each would be four millions.
        expect(most_rows()).toBeLessThan(20 * count);
        throw undo;
      });
      await expect(looked).rejects.toBe(undo);
    });

    test('settle and record-open read no growing table', async () => {
      expect((await planOf((s) => s.settle([aSettlement()]))).scanned).toEqual([]);
      expect((await planOf((s) => s.recordOpen([aJob()]))).scanned).toEqual([]);
    });
  });
}

/** Runs and explains what it is given, and knows the most rows that one step of a plan has looked at. */
function measuring(sql: Sql): { measure: Sql; most_rows: () => number } {
  let most_rows = 0;
  const measure = {
    async query<Row>(statement: Parameters<Sql['query']>[0], params = []) {
      const text = typeof statement === 'string' ? statement : statement.text;
      const [row] = await sql.query<{ 'QUERY PLAN': { Plan: Plan }[] }>(
        `explain (analyze, timing off, format json) ${text}`,
        params,
      );
      most_rows = Math.max(...row!['QUERY PLAN'].flatMap(({ Plan }) => flatten(Plan)).map(rowsOf));
      return [] as Row[];
    },
  } as Sql;
  return { measure, most_rows: () => most_rows };
}

function flatten(plan: Plan): Plan[] {
  return [plan, ...(plan.Plans ?? []).flatMap(flatten)];
}

/** How many rows a step has looked at, those that it threw away with them. */
function rowsOf(plan: Plan): number {
  const { 'Rows Removed by Filter': filtered = 0, 'Rows Removed by Join Filter': unmatched = 0 } = plan;
  return ((plan['Actual Rows'] ?? 0) + filtered + unmatched) * (plan['Actual Loops'] ?? 0);
}

/** Most of what there is waits in one lane, as after a large batch. */
const LONG_LINE = [
  `insert into jobs (id, kind, attached, state, replica, model, operation, request_id, order_key, lane, created_at,
     deadline_at)
   select 'job_l' || n, 'inference', false, 'queued', 'rep_a', 'model-1', 'chat', 'req_' || n, n, 'lane_long', ${T0} + n,
     4102444800000 + n
   from generate_series(1, 40000) n`,
  `insert into job_bodies (job, request, retention_ms)
   select 'job_l' || n, md5(n::text), 1 from generate_series(1, 40000) n`,
  'analyze jobs',
  'analyze job_bodies',
];

/** Enough of everything for the planner to want its indexes, and ANALYZE so that it knows. */
const SEED = [
  `insert into jobs (id, kind, attached, state, replica, key, model, operation, request_id, order_key,
     created_at, finished_at)
   select 'job_' || n, 'inference', true,
     case when n % 200 = 0 then 'failed' when n % 5000 = 1 then 'running' else 'succeeded' end, 'rep_a',
     'key_' || n % 50, 'model-' || n % 50, 'chat', 'req_' || n, n, ${T0} + n,
     case when n % 5000 = 1 then null else ${T0} + n end
   from generate_series(1, 20000) n on conflict do nothing`,
  `insert into jobs (id, kind, attached, state, replica, key, model, operation, request_id, order_key, lane,
     created_at, attempt, node, epoch, deadline_at, not_before, idempotency_key, finished_at)
   select 'job_d' || n, 'inference', false, (array['queued', 'leased', 'running', 'succeeded'])[n % 4 + 1], 'rep_a',
     'key_' || n % 50, 'model-' || n % 50, 'chat', 'req_' || n, n, 'lane_' || n % 20, ${T0} + n, 1,
     case when n % 4 in (1, 2) then 'node_' || n % 400 end, 1, 4102444800000 + n,
     case when n % 8 = 0 then 4102444800000 + n end, case when n % 3 = 0 then 'idem' || n end,
     case when n % 4 = 3 then ${T0} + n end
   from generate_series(1, 6000) n on conflict do nothing`,
  `insert into job_bodies (job, request, retention_ms, erase_at)
   select 'job_d' || n, repeat(md5(n::text), 40), 1, 4102444800000 + n from generate_series(1, 6000) n on conflict do nothing`,
  `insert into attempts (job, attempt, node, epoch, outcome, offered_at)
   select 'job_' || n, 1, 'node_' || n % 50, 1, 'succeeded', n from generate_series(1, 20000) n on conflict do nothing`,
  `insert into usage (job, request_id, key, model, operation, node, outcome, status, attempts, prompt_tokens,
     completion_tokens, cached_tokens, estimated, queue_ms, total_ms, created_at, provider)
   select 'job_' || n, 'req_' || n, 'key_' || n % 50, 'model-' || n % 50, 'chat', 'node_' || n % 50, 'succeeded', 200,
     1, 1, 1, 0, false, 1, 1, ${T0} + n * 1000, case when n % 10 = 0 then 'prv_' || n % 50 end
   from generate_series(1, 20000) n on conflict do nothing`,
  `insert into nodes (id, name, labels, allowed_models, created_at)
   select 'node_' || n, 'seed-' || n, '{}', '[]', 1 from generate_series(1, 5000) n on conflict do nothing`,
  `insert into node_liveness (node, state, epoch)
   select 'node_' || n, 'offline', 1 from generate_series(1, 5000) n on conflict do nothing`,
  `insert into node_credentials (id, node, hash, created_at, expires_at)
   select 'cred_' || n, 'node_' || n, 'hash_' || n, 1, case when n % 10 = 0 then 4102444800000 + n end
   from generate_series(1, 5000) n on conflict do nothing`,
  // Ids like real ones of the seconds from T0 on: the look for a time goes by them.
  `insert into audit (id, at, action, outcome, key, target, change, request_id)
   select 'aud_' || lpad(n::text, 26, '0'), ${T0} + n, 'key.update', 'succeeded', 'key_' || n % 50, 'node_' || n % 500,
     '{}', 'req_' || n from generate_series(1, 20000) n on conflict do nothing`,
  `insert into model_discoveries (id, node, backend, state, stage, created_at, expires_at, finished_at)
   select 'disc_' || n, 'node_' || n, '', case when n % 500 = 0 then 'pending' else 'completed' end, 'pending', 1,
     4102444800000 + n, case when n % 500 = 0 then null else 2 end
   from generate_series(1, 20000) n on conflict do nothing`,
  `insert into model_catalogues (node, backend, kind, models, models_total, discovered_at)
   select 'node_' || n, 'ollama', 'ollama', '[]', 0, 1 from generate_series(1, 5000) n on conflict do nothing`,
  'analyze',
];
