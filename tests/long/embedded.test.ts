import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Store } from '@flotilla/core';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { openEngine, openStore } from '../../packages/control/src/store/open.ts';
import { upkeep } from '../../packages/control/src/store/pglite-upkeep.ts';
import type { Engine } from '../../packages/control/src/store/sql.ts';
import { storeOn } from '../../packages/control/src/store/store.ts';
import { embeddedPlace, quiet } from '../support/store.ts';
import { aSettlement } from '../conformance/rows.ts';

/** What only the embedded store has to promise: one process a directory, and no loss when that process dies. */
vi.setConfig({ testTimeout: 60_000 }); // each start of a process compiles PGlite anew

describe('several processes and one data directory', () => {
  const children: ChildProcess[] = [];
  let place: Awaited<ReturnType<typeof embeddedPlace>>;
  beforeAll(async () => {
    place = await embeddedPlace();
  });
  afterEach(async () => {
    for (const child of children.splice(0)) await kill(child);
  });
  afterAll(() => place.drop());

  function start(task: 'hold' | 'settle') {
    const fixture = fileURLToPath(new URL('embedded.fixture.ts', import.meta.url));
    const args = [fixture, place.data_dir, task];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    children.push(child);
    const said = { out: '', err: '' };
    child.stdout.on('data', (chunk: Buffer) => void (said.out += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => void (said.err += chunk.toString()));
    const decided = async () => {
      const isOpenOrGone = () => said.out.includes('open') || child.exitCode !== null;
      await expect.poll(isOpenOrGone, { timeout: 15_000 }).toBe(true);
    };
    return { child, said, decided };
  }

  async function kill(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }

  async function jobsOf(store: Store): Promise<Set<string>> {
    const kept = new Set<string>();
    for (let after: string | null | undefined; after !== null; ) {
      const page = await store.listJobs({}, { limit: 500, ...(after ? { after } : {}) });
      for (const job of page.rows) if (job.attempts.length === 1) kept.add(job.id);
      after = page.next_after;
    }
    return kept;
  }

  test.each([1, 2])(
    'a second process is told the directory and who has it; kill -9 of that one loses nothing that it acknowledged, and the next opens (%i)',
    async (round) => {
      const { child, said } = start('settle');
      const acknowledged = () => said.out.split('\n').filter((line) => line.startsWith('job_')).length;
      await expect.poll(acknowledged, { timeout: 15_000 }).toBeGreaterThan(500 * round);
      const { data_dir } = place;
      const refusal = await openStore({ data_dir }, quiet).catch((error: Error) => error.message);
      expect(refusal).toContain(`The data directory ${data_dir} is in use by process ${child.pid}`);
      expect(refusal).toContain('Stop that process first');
      await kill(child);
      const lines = said.out.split('\n').slice(0, -1); // the last may be cut
      const store = await openStore({ data_dir }, quiet);
      const kept = await jobsOf(store);
      await store.close();
      expect(lines.filter((line) => line.startsWith('job_') && !kept.has(line))).toEqual([]);
    },
  );

  test('of four processes that start together exactly one gets it', async () => {
    const racers = [1, 2, 3, 4].map(() => start('hold'));
    for (const racer of racers) await racer.decided();
    expect(racers.filter(({ said }) => said.out.includes('open'))).toHaveLength(1);
    for (const { said } of racers.filter(({ said }) => !said.out.includes('open'))) {
      expect(said.err).toContain('is in use by');
    }
  });
});

/** One store, opened, closed and opened again: each test goes on where the last one stopped. */
describe('the embedded store', () => {
  let place: Awaited<ReturnType<typeof embeddedPlace>>;
  let engine: Engine;
  beforeAll(async () => {
    place = await embeddedPlace();
    mkdirSync(join(place.data_dir, 'store.new-123'));
    writeFileSync(join(place.data_dir, 'store.new-123', 'PG_VERSION'), 'half');
    engine = await openEngine(place.options, quiet);
  });
  afterAll(async () => {
    await engine.close();
    await place.drop();
  });

  test('clears away what an interrupted first start left behind', () => {
    expect(readdirSync(place.data_dir).sort()).toEqual(['store', 'store.holder.json', 'store.lock']);
  });

  test('cannot be opened twice by one process', async () => {
    await expect(openStore(place.options, quiet)).rejects.toThrow(`is in use by process ${process.pid}`);
    expect(await engine.query('select 1 as one')).toEqual([{ one: 1 }]);
  });

  test('leaves the main thread free while it works', async () => {
    let ticks = 0;
    const timer = setInterval(() => void (ticks += 1), 5);
    await engine.query(`select count(*) from generate_series(1, 150000) n where md5(n::text) like 'a%'`);
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(10);
  });

  test('is kept up: what was written over is vacuumed, so that a table does not grow, and the log is bounded', async () => {
    const size = async () => {
      const [row] = await engine.query<{ bytes: number }>(`select pg_relation_size('jobs') as bytes`);
      return row!.bytes;
    };
    await engine.query(
      `insert into jobs (id, kind, attached, state, replica, model, operation, request_id, order_key, created_at)
       select 'old_' || n, 'inference', true, 'queued', 'r', 'm', 'chat', 'q', n, n from generate_series(1, 1000) n`,
    );
    const sizes: number[] = [];
    const done = { vacuumed: 0, checkpoints: 0 };
    for (let round = 0; round < 12; round++) {
      await engine.query(`update jobs set order_key = order_key + 1, state = 'leased'`);
      const result = await upkeep(engine, 2 * 1024 * 1024);
      if (result.vacuumed === 'jobs') done.vacuumed += 1;
      if (result.checkpoint) done.checkpoints += 1;
      sizes.push(await size());
    }
    await upkeep(engine, 0);
    expect(await upkeep(engine, 64 * 1024)).toMatchObject({ checkpoint: false });
    expect(done.vacuumed).toBeGreaterThan(5);
    expect(done.checkpoints).toBeGreaterThan(0);
    expect(sizes.at(-1)).toBeLessThanOrEqual(sizes[2]! * 1.2);
  });

  test('refuses work once it is closed, instead of hanging; opened again it has everything', async () => {
    const settlement = aSettlement();
    const closed = storeOn(engine, quiet);
    await closed.settle([settlement]);
    await closed.close();
    await expect(closed.ping()).rejects.toMatchObject({ code: 'unavailable' });
    expect(readdirSync(place.data_dir).sort()).toEqual(['store', 'store.lock']);
    engine = await openEngine(place.options, quiet);
    const found = await storeOn(engine, quiet).findJob(settlement.job.id);
    expect(found).toMatchObject({ state: 'succeeded' });
  });
});

describe('a data directory', () => {
  let dir: string;
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'flotilla-test-'));
  });
  afterAll(() => rmSync(dir, { recursive: true }));

  test('that has never been used is made, for its owner only', async () => {
    const fresh = join(dir, 'deeper', 'fresh');
    const store = await openStore({ data_dir: fresh }, quiet);
    await store.ping();
    await store.close();
    expect(existsSync(join(fresh, 'store', 'PG_VERSION'))).toBe(true);
    expect(statSync(fresh).mode & 0o077).toBe(0);
  });

  test('that cannot be opened is told with the reason, and not held', async () => {
    const broken = join(dir, 'broken');
    mkdirSync(join(broken, 'store'), { recursive: true });
    writeFileSync(join(broken, 'store', 'PG_VERSION'), '1\n');
    for (let attempt = 0; attempt < 2; attempt++) {
      const refusal = await openStore({ data_dir: broken }, quiet).catch((error: Error) => error.message);
      expect(refusal).toContain(`The embedded store in ${broken} could not be opened`);
    }
  });
});
