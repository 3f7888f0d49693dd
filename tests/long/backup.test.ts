import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AuditView, JobBatchVerdicts, UsageRow } from '@flotilla/protocol';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type Outcome, run as runCommand } from '../../packages/cli/src/testing/command.ts';
import { testDatabaseUrl } from '../support/store.ts';
import { until } from '../support/until.ts';
import { openWorld, type TestNode, type World } from '../support/world.ts';

/**
 * A backup that is taken while requests are served, restored elsewhere, and served from: real processes, a real node
 * that knows nothing of it. The load is attached requests and detached jobs. On PostgreSQL where FLOTILLA_TEST_DATABASE_URL says so, else embedded.
 */
vi.setConfig({ testTimeout: 180_000 }); // six stores are opened on the way, each of which compiles PGlite

/** In the prompt of work that nobody waits for. */
const DETACHED = 'nobody waits for this';

describe('a backup taken under load', () => {
  let world: World;
  let node: TestNode;
  let key: string;
  let dir: string;
  let file: string;
  let taken: Outcome;
  /** Request ids whose answers had come before the backup was asked for. */
  let before: Set<string>;
  /** Detached jobs that were acknowledged with 202 before it. */
  let before_jobs: string[];
  const acknowledged: string[] = [];
  let after_count = 0;
  const failed: string[] = [];

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'flotilla-backup-'));
    file = join(dir, 'fleet.backup');
    world = await openWorld();
    const backend = await world.backend(({ body }, response) => {
      const answer = JSON.stringify({
        object: 'chat.completion',
        choices: [{ index: 0, message: { role: 'assistant', content: 'hi' }, finish_reason: 'stop' }],
        usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 },
      });
      response.setHeader('content-type', 'application/json');
      // Detached work takes a while, so that at each moment some of it is queued, and some at work.
      if (body.includes(DETACHED)) setTimeout(() => response.end(answer), 100);
      else response.end(answer);
    });
    node = await world.node({ name: 'attic', backends: [{ url: backend.url, slots: 4 }] });
    key = await world.key({ name: 'laptop', scopes: ['inference', 'jobs'] });

    const answered: string[] = [];
    let loading = true;
    const client = async () => {
      while (loading) {
        const reply = await world.plane.chat({}, { key });
        const text = await reply.text();
        if (reply.status === 200) answered.push(reply.headers.get('x-request-id')!);
        else failed.push(`${reply.status} ${text}`);
      }
    };
    const submitter = async () => {
      const request = { messages: [{ role: 'user', content: DETACHED }] };
      const jobs = Array.from({ length: 12 }, () => ({ model: 'scripted', request }));
      while (loading) {
        const { data } = await world.plane.send<JobBatchVerdicts>(
          'POST',
          '/api/v1/jobs/batch',
          { jobs },
          key,
        );
        for (const verdict of data) {
          if ('id' in verdict) acknowledged.push(verdict.id);
          else failed.push(verdict.error.message);
        }
        // The next ones come before these are done: there is always work under way.
        await until('some of them have ended', async () => (await openJobs(world)) <= 8 || !loading);
      }
    };
    const clients = [client(), client(), client(), submitter()];
    await until('requests are served', () => answered.length > 60 && acknowledged.length >= 24, 60_000);
    before = new Set(answered);
    before_jobs = [...acknowledged];
    taken = await backup(file);
    await until('requests go on', () => answered.length > before.size + 20);
    loading = false;
    await Promise.all(clients);
    after_count = answered.length;
  }, 90_000);
  afterAll(async () => {
    await world?.close();
    await rm(dir, { recursive: true, force: true });
  });

  function backup(to: string): Promise<Outcome> {
    return flotilla(['backup', to, '--url', world.plane.url, '--api-key', world.plane.admin_key]);
  }
  const rowsOf = async (action: string) =>
    (await world.plane.get<{ data: AuditView[] }>(`/api/v1/audit?action=${action}`)).data;
  function flotilla(args: string[], env: Record<string, string> = {}): Promise<Outcome> {
    return runCommand(args, { HOME: dir, ...env });
  }

  test('is a file for its owner, says what it holds, and is not written over', async () => {
    expect(taken).toMatchObject({ code: 0 });
    expect(taken.stdout).toMatch(/usage +\d+/);
    expect(taken.stderr).toContain('read back and found whole');
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    const again = await backup(file);
    expect(again).toMatchObject({ code: 1 });
    expect(again.stderr).toContain('--force');
  });

  test('has its row in the audit, which is in the store before a byte has left', async () => {
    const who = { key_name: 'FLOTILLA_ADMIN_KEY', address: '127.0.0.1' };
    expect(await rowsOf('backup.take')).toMatchObject([{ outcome: 'succeeded', ...who }]);
    const asked = (method: string) =>
      fetch(`${world.plane.url}/api/v1/backup`, {
        method,
        headers: { authorization: `Bearer ${world.plane.admin_key}` },
      });
    const looked = await asked('HEAD');
    expect([looked.status, looked.headers.get('content-type')]).toEqual([200, 'application/gzip']);
    expect(await rowsOf('backup.take')).toHaveLength(1);
    const begun = await asked('GET');
    // Its head has come, its body is not read yet.
    expect(await rowsOf('backup.take')).toHaveLength(2);
    await begun.arrayBuffer();
  });

  test('costs no request its answer', () => {
    expect(failed).toEqual([]);
  });

  test('holds no credential', async () => {
    const { gunzipSync } = await import('node:zlib');
    const text = gunzipSync(await readFile(file)).toString('utf8');
    const credential = (await readFile(join(node.state_dir, 'credential'), 'utf8')).trim();
    for (const secret of [key, world.plane.admin_key, node.token, /fln_[\w-]+/.exec(credential)![0]])
      expect(text).not.toContain(secret);
    expect(text).toContain('"name":"laptop"');
  });

  test('restores to a consistent store, which is copied to another engine and served from, to the same node and keys', async () => {
    const elsewhere = join(dir, 'elsewhere');
    const heartbeat = { FLOTILLA_HEARTBEAT_MS: '500' };
    const restored = await flotilla(['restore', file, '--data-dir', elsewhere, '--json'], heartbeat);
    expect(restored).toMatchObject({ code: 0 });
    const { tables, requeued } = JSON.parse(restored.stdout) as RestoredReport;
    expect(tables['usage']!.rows).toBeGreaterThanOrEqual(before.size);
    expect(tables['usage']!.rows).toBeLessThan(after_count + acknowledged.length);
    // It was taken with work on the node.
    expect(requeued).toBeGreaterThan(0);

    const database = await testDatabaseUrl();
    const copied = database?.url ?? join(dir, 'copied');
    const copy = await flotilla(['store', 'copy', '--from', elsewhere, '--to', copied], heartbeat);
    expect(copy).toMatchObject({ code: 0, stderr: expect.stringContaining('has every row of') });

    // The old one is gone; the new one answers at its address.
    await world.plane.program().stop();
    const { flotilla: start } = await import('../support/program.ts');
    const plane = start(['control'], {
      HOME: dir,
      FLOTILLA_DATA_DIR: join(dir, 'copied'),
      ...(database === undefined ? {} : { DATABASE_URL: database.url }),
      FLOTILLA_PORT: String(world.plane.port),
      ...heartbeat,
    });
    try {
      await until('the restored control plane is ready', () => ready(world.plane.url), 60_000);
      await until('the node is back with its credential', async () => (await node.view()).state === 'online');
      expect((await node.view()).epoch).toBeGreaterThan(1_000_000);
      const reply = await until('the key of before is served', async () => {
        const answer = await world.plane.chat({}, { key });
        await answer.text();
        return answer.ok && answer;
      });
      expect(reply.status).toBe(200);
      await until('detached work has ended', async () => (await openJobs(world)) === 0, 30_000);
      await expectConsistent(tables['usage']!.rows);
    } finally {
      await plane.stop();
      await database?.drop();
    }
  });

  /** What was acknowledged is there; each job has one end, and what it used exactly once. */
  async function expectConsistent(usage_rows_then: number): Promise<void> {
    const rows = await usage(world);
    const jobs = await allJobs(world);
    expect(rows.length).toBeGreaterThan(usage_rows_then);
    const answered = new Set(rows.map((row) => row.request_id));
    expect([...before].filter((id) => !answered.has(id))).toEqual([]);
    for (const row of rows) expect(row).toMatchObject({ prompt_tokens: 3, completion_tokens: 2 });

    const by_id = new Map(jobs.map((job) => [job.id, job]));
    const ends = before_jobs.map((id) => by_id.get(id)?.state ?? 'lost');
    expect(ends).toEqual(before_jobs.map(() => 'succeeded'));
    // What was open and attached then has failed: nobody waits for it any more.
    for (const job of jobs) expect(job.state).toMatch(job.attached ? /^(succeeded|failed)$/ : /^succeeded$/);
    const succeeded = jobs.filter((job) => job.state === 'succeeded');
    expect(rows.map(({ job }) => job).toSorted()).toEqual(succeeded.map(({ id }) => id).toSorted());
    const won = succeeded.map(
      ({ attempts }) => attempts.filter(({ outcome }) => outcome === 'succeeded').length,
    );
    expect(new Set(won)).toEqual(new Set([1]));
    for (const id of before_jobs.slice(-8)) {
      const { result } = await world.plane.get<{ result: { choices: unknown[] } | null }>(
        `/api/v1/jobs/${id}`,
      );
      expect(result?.choices).toHaveLength(1);
    }
    const { data } = await world.plane.get<{ data: { name: string; revoked_at: string | null }[] }>(
      '/api/v1/keys',
    );
    expect(data.map(({ name }) => name).toSorted()).toEqual(['FLOTILLA_ADMIN_KEY', 'laptop']);
  }

  test('that was cut, or altered, is refused with the reason, and nothing is made', async () => {
    const bytes = await readFile(file);
    const cut = join(dir, 'cut.backup');
    await writeFile(cut, bytes.subarray(0, bytes.length / 2));
    const target = join(dir, 'nothing');
    const refused = await flotilla(['restore', cut, '--data-dir', target]);
    expect(refused).toMatchObject({ code: 1 });
    expect(refused.stderr).toContain('cut short');
    await expect(stat(target)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('over a store that is in use is refused, with who has it', async () => {
    await world.plane.restart();
    const into =
      world.database_url === undefined
        ? ['--data-dir', join(world.dir, 'plane')]
        : ['--database-url', world.database_url];
    const refused = await flotilla(['restore', file, '--replace', ...into]);
    expect(refused).toMatchObject({ code: 1 });
    expect(refused.stderr).toMatch(/in use by process|control plane .* is running/);
    expect((await usage(world)).length).toBeGreaterThanOrEqual(after_count);
  });

  test('whose client goes away ends, and the next one can be taken', async () => {
    const leave = new AbortController();
    const reply = await fetch(`${world.plane.url}/api/v1/backup`, {
      headers: { authorization: `Bearer ${world.plane.admin_key}` },
      signal: leave.signal,
    });
    expect(reply.status).toBe(200);
    leave.abort();
    const next = await until('the next one is taken', async () => {
      const outcome = await flotilla([
        'backup',
        join(dir, 'next.backup'),
        '--url',
        world.plane.url,
        '--api-key',
        world.plane.admin_key,
      ]);
      return outcome.code === 0 && outcome;
    });
    expect(next.stderr).toContain('found whole');
  });
});

async function ready(url: string): Promise<boolean> {
  return fetch(`${url}/readyz`).then(
    (reply) => reply.ok,
    () => false,
  );
}

interface Listed {
  id: string;
  state: string;
  attached: boolean;
  attempts: { outcome: string }[];
}

interface RestoredReport {
  tables: Record<string, { rows: number }>;
  requeued: number;
}

/** How many detached jobs have not ended. */
async function openJobs(world: World): Promise<number> {
  const states = ['queued', 'leased', 'running'];
  const lists = await Promise.all(
    states.map((state) => world.plane.get<{ data: Listed[] }>(`/api/v1/jobs?limit=500&state=${state}`)),
  );
  return lists.flatMap(({ data }) => data).filter(({ attached }) => !attached).length;
}

async function usage(world: World): Promise<UsageRow[]> {
  return all<UsageRow>(world, '/api/v1/usage');
}

async function allJobs(world: World): Promise<Listed[]> {
  return all<Listed>(world, '/api/v1/jobs');
}

async function all<T>({ plane }: World, path: string): Promise<T[]> {
  const rows: T[] = [];
  for (let after: string | null = ''; after !== null; ) {
    const page: { data: T[]; next_after: string | null } = await plane.get(
      `${path}?limit=500${after === '' ? '' : `&after=${encodeURIComponent(after)}`}`,
    );
    rows.push(...page.data);
    after = page.next_after;
  }
  return rows;
}
