import { globSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { Store } from '@flotilla/core';
import type { JobView, UsageRow } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { type Environment, readControlConfig } from '../../packages/control/src/config.ts';
import { type RunningControl, runControl } from '../../packages/control/src/main.ts';
import { MIGRATIONS } from '../../packages/control/src/store/migrations/all.ts';
import { openEngine } from '../../packages/control/src/store/open.ts';
import type { Engine } from '../../packages/control/src/store/sql.ts';
import { storeOn } from '../../packages/control/src/store/store.ts';
import { aDetachedJob, aFinish, claim, fenceOf } from '../conformance/detached-rows.ts';
import { flotilla, type Program } from '../support/program.ts';
import { chatAnswer, startScriptedBackend } from '../support/scripted-backend.ts';
import { quiet, testServer } from '../support/store.ts';
import { until } from '../support/until.ts';
import { RECORDED, requestOf } from './fleet.ts';
import { embeddedAsRecorded, postgresAsRecorded, type RecordedStore, rowsOf } from './recorded-store.ts';

/**
 * An owner upgrades: today's program opens the store that an older one left behind with work in every state, and nothing
 * is lost. One recording for each schema that was ever released (record-store.ts); each is read on both engines.
 */
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const { admin, jobs, key, node, lane, model } = RECORDED;
const recordings = globSync('store/schema-*.sql', { cwd: import.meta.dirname }).toSorted();

test('there is a recording of the first schema that was released', () => {
  expect(recordings).toContain('store/schema-1.sql');
});

describe.each(recordings)('the store of %s', (recording) => {
  const file = join(import.meta.dirname, recording);
  upgraded(`${basename(file)}, embedded`, () => embeddedAsRecorded(file));
  drained(`${basename(file)}, embedded`, () => embeddedAsRecorded(file));
  if (testServer === undefined) return;
  upgraded(`${basename(file)}, on PostgreSQL`, () => postgresAsRecorded(testServer!, file));
  drained(`${basename(file)}, on PostgreSQL`, () => postgresAsRecorded(testServer!, file));
});

function upgraded(name: string, open: () => Promise<RecordedStore>): void {
  describe(`opened by today's program: ${name}`, () => {
    let recorded: RecordedStore;
    let sql: Engine;
    let store: Store;
    let open_store = false;
    beforeAll(async () => {
      recorded = await open();
      sql = await openEngine(recorded.options, quiet);
      store = storeOn(sql, quiet);
      open_store = true;
    });
    afterAll(async () => {
      if (open_store) await store.close();
      await recorded?.drop();
    });

    test('has today’s schema, and every row of before with every value that it had', async () => {
      const rows = await rowsOf((text) => sql.query(text));
      expect(rows['schema_migrations']).toHaveLength(MIGRATIONS.length);
      for (const [table, before] of Object.entries(recorded.rows)) {
        if (table === 'schema_migrations') continue;
        // New columns may have come to a row; and with them, another order.
        const kept = before.filter((row) => rows[table]?.some((now) => has(now, row)));
        expect({ table, rows: rows[table]?.length, kept }).toEqual({
          table,
          rows: before.length,
          kept: before,
        });
      }
    });

    test('knows its keys and nodes by their secrets’ hashes, and what was used', async () => {
      expect((await store.loadKeys()).map(({ id }) => id)).toEqual(
        expect.arrayContaining([admin.id, key.id]),
      );
      const { nodes, unreadable } = await store.loadNodes();
      expect(nodes).toMatchObject([{ id: node.id, name: node.name, epoch: 1, labels: { room: 'attic' } }]);
      expect(unreadable).toEqual([]);
      const { rows } = await store.listUsage({}, { limit: 10 });
      expect(rows.map(({ job }) => job).toSorted()).toEqual([jobs.finished, jobs.attached].toSorted());
      expect(rows.every(({ completion_tokens }) => completion_tokens === 300)).toBe(true);
    });

    test('knows what was asked before: the same idempotency key is the same job', async () => {
      const again = (body_hash: string) =>
        store.acceptJobs([
          aDetachedJob({ key: key.id, idempotency: { ...RECORDED.idempotency, body_hash } }),
        ]);
      expect(await again(RECORDED.idempotency.body_hash)).toEqual([{ existing: jobs.queued }]);
      expect(await again('of another one')).toEqual([{ conflict: jobs.queued }]);
    });

    test('gives out what was queued, in its order, with its request; what was in back-off comes too', async () => {
      const given = await claim(store, lane, 2, node.id, 2);
      expect(given).toMatchObject([
        { id: jobs.queued, attempt: 1, model, request: requestOf('queued') },
        { id: jobs.behind, attempt: 1, request: requestOf('behind') },
      ]);
      expect(await store.readyJobs(10)).toMatchObject([{ lane }]);
      expect(await claim(store, lane, 2, node.id, 2)).toMatchObject([
        { id: jobs.backing_off, attempt: 2, failures: 1, request: requestOf('backing_off') },
      ]);
    });

    test('lets the node that was at work when the old program stopped end its job', async () => {
      const held = await store.heldJobs(node.id);
      const running = held.find(({ id }) => id === jobs.running)!;
      expect(running).toMatchObject({ attempt: 1, state: 'running', epoch: 1 });
      expect(await store.finishJobs([aFinish(fenceOf(running))])).toEqual(['accepted']);
      expect(await store.findJob(jobs.running)).toMatchObject({
        state: 'succeeded',
        attempts: [{ attempt: 1 }],
      });
    });

    test('still has the result of what had ended', async () => {
      expect(await store.findJob(jobs.finished)).toMatchObject({
        state: 'succeeded',
        attempts: [{ node: node.id }],
      });
      expect(await store.loadBodies(jobs.finished)).toMatchObject({
        request: requestOf('finished'),
        result: '{"choices":[{"text":"done"}]}',
      });
    });

    test('serves: its keys work, its node and its jobs are shown', async () => {
      await store.close();
      open_store = false;
      const control = await serve(recorded);
      try {
        const get = async (path: string, secret: string) => {
          const reply = await fetch(`${control.url}${path}`, {
            headers: { authorization: `Bearer ${secret}` },
          });
          return [reply.status, await reply.json()];
        };
        expect(await get('/api/v1/nodes', admin.secret)).toMatchObject([
          200,
          { data: [{ id: node.id, name: node.name }] },
        ]);
        expect(await get(`/api/v1/jobs/${jobs.finished}`, key.secret)).toMatchObject([
          200,
          { state: 'succeeded' },
        ]);
        expect(await get(`/api/v1/jobs/${jobs.finished}`, 'flk_nobody')).toMatchObject([401, {}]);
      } finally {
        await control.close();
      }
    });
  });
}

/** The same again, from the outside: today's control plane and daemon on that store, with the credentials of before. */
function drained(name: string, open: () => Promise<RecordedStore>): void {
  test(`what the old program left undone is done by today's, and its client gets the results: ${name}`, async () => {
    const recorded = await open();
    onTestFinished(() => recorded.drop());
    const control = await serve(recorded, { FLOTILLA_HEARTBEAT_MS: '500' });
    onTestFinished(() => control.close());
    const backend = await startScriptedBackend(
      ({ body }, response) => {
        const { messages } = JSON.parse(body.toString()) as { messages: { content: string }[] };
        response.setHeader('content-type', 'application/json');
        response.end(chatAnswer(`done: ${messages[0]!.content}`));
      },
      [model],
    );
    onTestFinished(() => backend.close());
    const daemon = await startDaemon(control.url, backend.url);
    onTestFinished(() => daemon.stop());

    const get = async <T>(path: string): Promise<T> => {
      const headers = { authorization: `Bearer ${key.secret}` };
      return (await fetch(`${control.url}${path}`, { headers })).json() as Promise<T>;
    };
    const left = ['queued', 'behind', 'backing_off', 'running'] as const;
    for (const what of left) {
      const path = `/api/v1/jobs/${jobs[what]}`;
      const ended = async () => {
        const job = await get<JobView>(path);
        return job.finished_at !== null && job;
      };
      const job = await until(`the ${what} one has ended`, ended, 30_000);
      expect(job).toMatchObject({ state: 'succeeded', key: key.id, model });
      expect(JSON.stringify(job.result)).toContain(`done: the ${what} one`);
    }
    expect(await get(`/api/v1/jobs/${jobs.finished}`)).toMatchObject({
      state: 'succeeded',
      result: { choices: [{ text: 'done' }] },
    });
    // Each of them once, beside what was used before.
    const { data } = await get<{ data: UsageRow[] }>('/api/v1/usage?limit=100');
    const wanted = [...left, 'finished' as const, 'attached' as const].map((what) => jobs[what]);
    expect(data.map(({ job }) => job).toSorted()).toEqual(wanted.toSorted());
    expect(backend.requests.map(({ body }) => body.toString()).toSorted()).toEqual(
      left.map(requestOf).toSorted(),
    );
  });
}

/** Today's daemon on the machine that enrolled with the old program: its credential is all that it has of it. */
async function startDaemon(url: string, backend: string): Promise<Program> {
  const dir = await mkdtemp(join(tmpdir(), 'fl-u'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const { id: node_id, ...known } = node;
  const enrolled = { url, node_id, ...known, insecure: false, enrolled_at: '2026-01-01T00:00:00Z' };
  await writeFile(join(dir, 'credential'), JSON.stringify(enrolled), { mode: 0o600 });
  const backends = [{ url: backend, probe: 'list', slots: 2 }];
  await writeFile(join(dir, 'node.yaml'), JSON.stringify({ find_backends: false, status_port: 0, backends }));
  return flotilla(['node', 'run', '--state-dir', dir], { HOME: dir });
}

function has(now: Record<string, unknown>, before: Record<string, unknown>): boolean {
  return Object.entries(before).every(([column, value]) => isDeepStrictEqual(now[column], value));
}

function serve({ options }: RecordedStore, settings: Environment = {}): Promise<RunningControl> {
  const place =
    'database_url' in options
      ? { DATABASE_URL: options.database_url }
      : { FLOTILLA_DATA_DIR: options.data_dir };
  return runControl(readControlConfig({ FLOTILLA_PORT: '0', ...place, ...settings }), { log: quiet });
}
