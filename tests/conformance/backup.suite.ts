import { createWriteStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip, gunzipSync, gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { dumpStore } from '../../packages/control/src/store/backup/dump.ts';
import { checkBackup, copyStore, restoreBackup } from '../../packages/control/src/store/backup/restore.ts';
import { BOOKKEEPING_TABLE, tablesOf } from '../../packages/control/src/store/backup/tables.ts';
import type { Migration } from '../../packages/control/src/store/migrate.ts';
import { migrate } from '../../packages/control/src/store/migrate.ts';
import { MIGRATIONS } from '../../packages/control/src/store/migrations/all.ts';
import { openEngine, type StoreOptions } from '../../packages/control/src/store/open.ts';
import type { Engine } from '../../packages/control/src/store/sql.ts';
import { storeOn } from '../../packages/control/src/store/store.ts';
import { type Place, quiet } from '../support/store.ts';
import { aDetachedJob, aFinish } from './detached-rows.ts';
import { aKey, aSettlement, enrolNodes } from './rows.ts';

vi.setConfig({ testTimeout: 60_000 }); // each store that is made anew, or opened, compiles PGlite

/** What a later version could bring: every type of column that JSON or JavaScript could spoil on its way. */
const newest = MIGRATIONS.at(-1)!.version;
const ODD: Migration = {
  version: newest + 1,
  name: 'odd',
  statements: [
    `create table odd (
       id bigint generated always as identity primary key,
       big bigint, money numeric(30, 12), ratio double precision, raw bytea, at timestamptz,
       words text[], settings jsonb, twice bigint generated always as (big * 2) stored)`,
    `insert into odd (big) values (0)`,
  ],
};
const LATER: Migration = {
  version: newest + 2,
  name: 'later',
  statements: [
    `alter table odd add column colour text not null default 'red'`,
    `update odd set colour = 'blue' where big = 9007199254740993`,
    `create table younger (id text primary key)`,
  ],
};
const WITH_ODD = [...MIGRATIONS, ODD];
const restoring = { log: quiet, lease_ttl_ms: 15_000, replace: false };

export function backupSuite(
  name: string,
  makePlace: () => Promise<Place>,
  empty: () => Promise<Place>,
): void {
  describe(`a backup of ${name}`, () => {
    let dir: string;
    let source: Place;
    let engine: Engine;
    let file: string;
    let restored: Place;
    let untouched: Place;
    const facts = { keys: '', usage: 0, queued: '', held: '', nodes: [] as string[] };

    beforeAll(async () => {
      dir = mkdtempSync(join(tmpdir(), 'flotilla-test-'));
      source = await makePlace();
      engine = await openEngine(source.options, quiet);
      await migrate(engine, WITH_ODD, quiet);
      await fill(engine);
      file = await save(engine, WITH_ODD, 'whole');
      restored = await empty();
      untouched = await empty();
    }, 60_000);
    afterAll(async () => {
      await restored?.drop();
      await untouched?.drop();
      await engine?.close();
      await source?.drop();
      rmSync(dir, { recursive: true, force: true });
    });

    async function fill(sql: Engine): Promise<void> {
      const store = storeOn(sql, quiet);
      const key = aKey({ name: 'Zoë "x" \\ \u2028' });
      await store.insertKey(key);
      facts.keys = key.id;
      facts.nodes = await enrolNodes(store, 2);
      const epochs = await store.takeEpochs('rep_a', facts.nodes);
      await store.settle(Array.from({ length: 450 }, () => aSettlement()));
      facts.usage = 450;
      const [queued, held] = [aDetachedJob(), aDetachedJob({ lane: 'held' })];
      await store.acceptJobs([queued, held]);
      facts.queued = queued.id;
      const node = facts.nodes[0]!;
      const claimed = await store.claimJobs({
        replica: 'rep_a',
        lanes: [{ lane: 'held', node, epoch: epochs.get(node)!, free: 1 }],
        limit: 1,
      });
      facts.held = claimed[0]!.id;
      await sql.query(
        `insert into odd (big, money, ratio, raw, at, words, settings) values
          (9007199254740993, 123456789012345678.000000000001, 0.1, '\\x00ff0a', '2026-03-01 12:00:00.123456+02',
           '{"a b","c,\\"d\\"",null}', '{"n": 12345678901234567890.5, "t": "line\\nend", "z": {}}'),
          (null, null, 'NaN', '\\x', null, '{}', '[]')`,
      );
    }

    async function save(sql: Engine, migrations: readonly Migration[], as: string): Promise<string> {
      const to = join(dir, `${as}.backup`);
      const text = dumpStore(sql, { migrations, product_version: '0.0.0-test', now: new Date() });
      await pipeline(Readable.from(text), createGzip(), createWriteStream(to));
      return to;
    }

    async function opened<T>(options: StoreOptions, look: (sql: Engine) => Promise<T>): Promise<T> {
      const sql = await openEngine(options, quiet, [...WITH_ODD, LATER]);
      try {
        return await look(sql);
      } finally {
        await sql.close();
      }
    }

    const ROWS = 'select to_jsonb(o)::text as row from odd o order by id';

    test('has every table that the migrations make, and a restore knows each of them', async () => {
      const rows = await engine.query<{ name: string }>(
        `select table_name as name from information_schema.tables
         where table_schema = current_schema() and table_type = 'BASE TABLE'`,
      );
      const there = rows.map((row) => row.name).filter((table) => table !== BOOKKEEPING_TABLE);
      expect(there.sort()).toEqual([...tablesOf(WITH_ODD)].sort());
      const { head, tables } = await checkBackup(file);
      expect(head.tables.toSorted()).toEqual(there.sort());
      expect(tables).toMatchObject({ usage: { rows: 450 }, attempts: { rows: 450 }, odd: { rows: 3 } });
    });

    test('restores to the same rows, to the last digit, also through a later migration', async () => {
      const to = restored.options;
      const done = await restoreBackup(file, to, { ...restoring, migrations: [...WITH_ODD, LATER] });
      expect(done).toMatchObject({ requeued: 1, kept: null });
      const before = await engine.query<{ row: string }>(ROWS);
      await opened(to, async (sql) => {
        const after = await sql.query<{ row: string }>(
          `select (to_jsonb(o) - 'colour')::text as row from odd o order by id`,
        );
        expect(after).toEqual(before);
        expect(await sql.query('select big::text as big, colour from odd order by id')).toEqual([
          { big: '0', colour: 'red' },
          { big: '9007199254740993', colour: 'blue' },
          { big: null, colour: 'red' },
        ]);
        // Numbers that the database gives out go on.
        expect(await sql.query('insert into odd (big) values (1) returning id, twice')).toEqual([
          { id: 4, twice: 2 },
        ]);
        const keys = await storeOn(sql, quiet).loadKeys();
        expect(keys.map((key) => key.name)).toContain('Zoë "x" \\ \u2028');
      });
    });

    test('takes what nodes had at work back into the queue, and no fence of the other life fits', async () => {
      const old = await engine.query<{ epoch: number }>('select max(epoch) as epoch from node_liveness');
      await opened(restored.options, async (sql) => {
        const store = storeOn(sql, quiet);
        const job = await store.findDetached(facts.held);
        expect(job).toMatchObject({
          state: 'queued',
          node: null,
          attempt: 1,
          not_before: expect.any(Number),
        });
        const now = await sql.query<{ ms: number }>(
          'select (extract(epoch from now()) * 1000)::bigint as ms',
        );
        expect(job!.not_before! - now[0]!.ms).toBeGreaterThan(5000);
        expect((await store.findJob(facts.held))?.attempts).toMatchObject([{ outcome: 'node_lost' }]);
        expect(await store.findDetached(facts.queued)).toMatchObject({ state: 'queued', not_before: null });
        const epochs = await store.takeEpochs('rep_b', facts.nodes);
        for (const epoch of epochs.values()) expect(epoch).toBeGreaterThan(old[0]!.epoch + 100_000);
        // The source may have given the next attempt to the same node, which now has a result of it.
        await sql.query('update jobs set not_before = null where id = $1', [facts.held]);
        const node = facts.nodes[0]!;
        const lanes = [{ lane: 'held', node, epoch: epochs.get(node)!, free: 1 }];
        const [again] = await store.claimJobs({ replica: 'rep_b', lanes, limit: 1 });
        expect(again).toMatchObject({ id: facts.held, attempt: 2 });
        const other_life = { ...again!, epoch: old[0]!.epoch + 3 };
        expect(await store.finishJobs([aFinish(other_life)])).toEqual(['stale']);
        expect(await store.finishJobs([aFinish(again!)])).toEqual(['accepted']);
      });
    });

    test.each([
      ['is cut short', (bytes: Buffer) => bytes.subarray(0, bytes.length - 2000), /cut short|not whole/],
      ['ends between two rows', (bytes: Buffer) => lines(bytes, (all) => all.slice(0, -1)), /in the middle/],
      ['lost a row', (bytes: Buffer) => lines(bytes, (all) => all.toSpliced(5, 1)), /checksum/],
      [
        'has another number in it',
        (bytes: Buffer) =>
          lines(bytes, (all) => all.map((line) => line.replace('"status":200', '"status":500'))),
        /checksum/,
      ],
      ['is no backup', () => gzipSync('{"hello":1}\n'), /no backup of Flotilla/],
      ['is no archive', () => Buffer.from('hello'), /damaged, or no backup/],
      [
        'has a newer format',
        (bytes: Buffer) =>
          lines(bytes, (all) => [all[0]!.replace('"flotilla_backup":1', '"flotilla_backup":2')]),
        /format 2.*newer Flotilla/,
      ],
    ])('that %s is refused', async (_how, spoil, said) => {
      const spoilt = join(dir, 'spoilt.backup');
      writeFileSync(spoilt, spoil(readFileSync(file)));
      const options = { ...restoring, replace: true, migrations: [...WITH_ODD, LATER] };
      await expect(restoreBackup(spoilt, untouched.options, options)).rejects.toThrow(said);
    });

    test('of a newer schema is refused with both versions; none of these has changed anything', async () => {
      const options = { ...restoring, migrations: MIGRATIONS };
      await expect(restoreBackup(file, untouched.options, options)).rejects.toThrow(
        `schema version ${newest + 1}, made by Flotilla 0.0.0-test; this program knows versions up to ${newest}`,
      );
      await opened(untouched.options, async (sql) => {
        expect(await storeOn(sql, quiet).loadKeys()).toEqual([]);
        expect(await sql.query('select count(*) as rows from odd')).toEqual([{ rows: 1 }]);
      });
    });

    test('goes into a store that has something only where that is given up', async () => {
      const to = untouched.options;
      const own = aKey();
      await opened(to, (sql) => storeOn(sql, quiet).insertKey(own));
      const options = { ...restoring, migrations: [...WITH_ODD, LATER] };
      await expect(restoreBackup(file, to, options)).rejects.toThrow(
        /not empty \(api_keys has rows\).*--replace/,
      );
      const names = () =>
        opened(to, async (sql) => (await storeOn(sql, quiet).loadKeys()).map(({ id }) => id));
      expect(await names()).toEqual([own.id]);
      const { kept } = await restoreBackup(file, to, { ...options, replace: true });
      expect(kept === null).toBe('database_url' in to);
      expect(await names()).toEqual([facts.keys]);
    });

    test('is of one moment: what is settled while it is read is in it whole or not at all', async () => {
      const store = storeOn(engine, quiet);
      let reading = true;
      let acknowledged = 0;
      let slowest_ms = 0;
      const load = (async () => {
        while (reading) {
          const began = performance.now();
          await store.settle(Array.from({ length: 5 }, () => aSettlement()));
          slowest_ms = Math.max(slowest_ms, performance.now() - began);
          acknowledged += 5;
        }
      })();
      await expect.poll(() => acknowledged).toBeGreaterThan(20);
      const at_least = facts.usage + acknowledged;
      const busy = await save(engine, WITH_ODD, 'busy').finally(() => (reading = false));
      await load;
      const { tables } = await checkBackup(busy);
      expect(tables['usage']!.rows).toBeGreaterThanOrEqual(at_least);
      expect(tables['usage']!.rows).toBeLessThan(facts.usage + acknowledged);
      expect(tables['attempts']!.rows).toBe(tables['usage']!.rows);
      expect(tables['jobs']!.rows).toBe(tables['usage']!.rows + 2);
      facts.usage += acknowledged;
      // Held up, but for far less than the 15 s that an answer waits for its record.
      expect(slowest_ms).toBeLessThan(5000);
    });
  });
}

/** A copy of a store at rest to another place; the source stays. */
export function copySuite(name: string, makePlace: () => Promise<Place>, empty: () => Promise<Place>): void {
  test(`a copy ${name} has every row, and leaves the source as it was`, async () => {
    const [source, target] = [await makePlace(), await empty()];
    onTestFinished(async () => {
      await source.drop();
      await target.drop();
    });
    const filled = await openEngine(source.options, quiet);
    const store = storeOn(filled, quiet);
    await store.insertKey(aKey());
    await store.settle(Array.from({ length: 300 }, () => aSettlement()));
    await store.close();
    const options = { ...restoring, migrations: MIGRATIONS, product_version: '0.0.0-test' };
    const copied = await copyStore(source.options, target.options, options);
    expect(copied.tables).toMatchObject({ usage: { rows: 300 }, jobs: { rows: 300 }, api_keys: { rows: 1 } });
    for (const place of [source, target]) {
      const sql = await openEngine(place.options, quiet);
      const [row] = await sql.query('select count(*) as usage, sum(total_ms) as ms from usage');
      expect(row).toMatchObject({ usage: 300 });
      await sql.close();
    }
    await expect(copyStore(source.options, target.options, options)).rejects.toThrow('not empty');
  });
}

function lines(bytes: Buffer, change: (all: string[]) => string[]): Buffer {
  const all = gunzipSync(bytes).toString('utf8').trimEnd().split('\n');
  return gzipSync(`${change(all).join('\n')}\n`);
}
