import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { makeId } from '@flotilla/protocol';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import type { Store } from '@flotilla/core';
import { ensureAdminKey } from '../../packages/control/src/accounts/keys.ts';
import { systemClock, systemRandom } from '../../packages/control/src/clock.ts';
import { lockSchema, migrate, schemaVersion } from '../../packages/control/src/store/migrate.ts';
import { openEngine, openStore } from '../../packages/control/src/store/open.ts';
import { openPostgres } from '../../packages/control/src/store/postgres.ts';
import { freshDatabase, quiet, testServer } from '../support/store.ts';
import { aSettlement, enrolNodes } from './rows.ts';

const [REP_A, REP_B, REP_C, REP_D] = [1, 2, 3, 4].map((n) =>
  makeId('replica', n, systemRandom.bytes(10)),
) as [string, string, string, string];

/** What only PostgreSQL can be asked: several replicas, and a server that goes away. */
describe.skipIf(testServer === undefined)(
  'the store on PostgreSQL, with replicas and a server that fails',
  () => {
    async function emptyDatabase() {
      const { url, drop } = await freshDatabase(testServer!);
      onTestFinished(drop);
      return { database_url: url };
    }

    test('replicas that migrate at the same time take turns, and each finds the schema whole', async () => {
      const options = await emptyDatabase();
      const stores = await Promise.all(Array.from({ length: 6 }, () => openStore(options, quiet)));
      for (const store of stores) expect(await store.configVersion()).toBe(1);
      await Promise.all(stores.map((store) => store.close()));
    });

    test('a migration may take longer than other statements; who waits for it may too', async () => {
      const options = await emptyDatabase();
      const engines = await Promise.all(
        [1, 2].map(() => openPostgres(options.database_url, quiet, { statement_timeout_ms: 200 })),
      );
      // Longer than the client waits for an answer as well, which is two seconds more.
      const slow = { version: 1, name: 'slow', statements: ['select pg_sleep(2.5)'] };
      await Promise.all(engines.map((engine) => migrate(engine, [slow], quiet)));
      for (const engine of engines) {
        expect(await schemaVersion(engine)).toBe(1);
        await expect(engine.query('select pg_sleep(60)')).rejects.toMatchObject({
          code: 'unavailable',
          cause: { message: 'canceling statement due to statement timeout' },
        });
        await engine.close();
      }
    });

    test('who waits for another to migrate says so', async () => {
      const options = await emptyDatabase();
      const holder = await openPostgres(options.database_url, quiet);
      const told = Promise.withResolvers<void>();
      const log = {
        ...quiet,
        info: (_: unknown, message: string) => message.includes('waiting') && told.resolve(),
      };
      let waiting: Promise<Store> | undefined;
      await holder.transaction(async (tx) => {
        await lockSchema(tx, quiet);
        waiting = openStore(options, log);
        await told.promise;
      });
      const store = await waiting!;
      expect(await store.configVersion()).toBe(1);
      await store.close();
      await holder.close();
    });

    test('replicas that start at the same time make the first key once, and each of them starts', async () => {
      const options = await emptyDatabase();
      const stores = await Promise.all(Array.from({ length: 6 }, () => openStore(options, quiet)));
      const deps = { clock: systemClock, random: systemRandom, log: quiet };
      const admin_key = 'k'.repeat(40);
      await Promise.all(stores.map((store) => ensureAdminKey(admin_key, { ...deps, store })));
      expect(await stores[0]!.loadKeys()).toHaveLength(1);
      await Promise.all(stores.map((store) => store.close()));
    });

    test('connections that the server drops cost the statements under way, and no later one', async () => {
      const options = await emptyDatabase();
      const warned: string[] = [];
      const engine = await openEngine(options, {
        ...quiet,
        warn: (_fields, message) => void warned.push(message),
      });
      await Promise.all([1, 2, 3].map(() => engine.query('select pg_sleep(0.01)')));
      const underWay = engine.query('select pg_sleep(5)').catch((error: unknown) => error);
      const other = await openEngine(options, quiet);
      await expect
        .poll(() =>
          other.query(`select count(*) as count from pg_stat_activity where query = 'select pg_sleep(5)'`),
        )
        .toEqual([{ count: 1 }]);
      await other.query(
        `select pg_terminate_backend(pid) from pg_stat_activity
       where datname = current_database() and pid <> pg_backend_pid()`,
      );
      expect(await underWay).toMatchObject({ code: 'unavailable' });
      await expect.poll(() => warned).toEqual(Array(2).fill('An idle connection to PostgreSQL was lost.'));
      expect(await engine.query('select 1 as one')).toEqual([{ one: 1 }]);
      await Promise.all([engine.close(), other.close()]);
    });

    test('a transaction whose connection dies is unavailable, undone, and its connection is not used again', async () => {
      const engine = await openEngine(await emptyDatabase(), quiet);
      await engine.query('create table scratch (n int)');
      const dying = engine.transaction(async (tx) => {
        await tx.query('insert into scratch values (1)');
        const [row] = await tx.query<{ pid: number }>('select pg_backend_pid() as pid');
        await engine.query('select pg_terminate_backend($1)', [row!.pid]);
        await tx.query('insert into scratch values (2)');
      });
      await expect(dying).rejects.toMatchObject({ code: 'unavailable' });
      expect(await engine.query('select n from scratch')).toEqual([]);
      await engine.close();
    });

    test('two replicas that write about the same rows in opposite orders never deadlock', async () => {
      const options = await emptyDatabase();
      const [a, b] = [await openStore(options, quiet), await openStore(options, quiet)];
      const nodes = await enrolNodes(a, 40);
      const backwards = <T>(rows: T[]) => [...rows].reverse();
      for (let round = 1; round <= 15; round++) {
        const seen = nodes.map((id) => ({ id, at: round }));
        const settlements = Array.from({ length: 40 }, () => aSettlement());
        await Promise.all([
          a.flushSeen(seen),
          b.flushSeen(backwards(seen)),
          a.takeEpochs('rep_a', nodes),
          b.takeEpochs('rep_b', backwards(nodes)),
          a.settle(settlements),
          b.settle(backwards(settlements)),
        ]);
      }
      expect((await a.takeEpochs('rep_a', nodes)).get(nodes[0]!)).toBe(31);
      await Promise.all([a.close(), b.close()]);
    });

    test('a replica is known by its sessions, which are gone when it is, and says whether they bear its name', async () => {
      const options = await emptyDatabase();
      const [own, other] = [
        await openStore({ ...options, replica: REP_A }, quiet),
        await openStore({ ...options, replica: REP_B }, quiet),
      ];
      await own.enterReplica(REP_A, false);
      expect(await other.openSessions()).toContain(REP_A);
      await own.close();
      await vi.waitFor(async () => expect(await other.openSessions()).not.toContain(REP_A));
      // As every session of a control plane of before they had names, and of whoever else is connected.
      const unnamed = await openStore(options, quiet);
      expect(await other.openSessions()).toEqual(new Set([REP_B]));
      await unnamed.enterReplica(REP_D, false);
      await unnamed.close();
      // As those of a control plane whose own address names them.
      for (const name of ['fleet', 'flotilla prod']) {
        const address = new URL(options.database_url);
        address.searchParams.set('application_name', name);
        const renamed = await openStore({ database_url: address.href, replica: REP_C }, quiet);
        expect(await other.openSessions()).toEqual(new Set([REP_B]));
        await renamed.enterReplica(REP_C, false);
        expect((await other.listReplicas()).filter(({ named }) => named).map(({ id }) => id)).toEqual([
          REP_A,
        ]);
        await renamed.endReplica(REP_C);
        await renamed.close();
      }
      await other.close();
    });

    test('where the address names sessions otherwise, nobody is taken for gone', async () => {
      const address = new URL((await emptyDatabase()).database_url);
      address.searchParams.set('application_name', 'fleet');
      const store = await openStore({ database_url: address.href, replica: REP_A }, quiet);
      expect(await store.openSessions()).toBeNull();
      await store.close();
    });

    test('behind a pooler, whose sessions are its own, nobody is taken for gone', async () => {
      const { database_url } = await emptyDatabase();
      const server = new URL(database_url);
      const pooler = await startPooler(Number(server.port));
      server.port = String(pooler.port);
      const store = await openStore({ database_url: server.href, replica: REP_A }, quiet);
      expect(await store.openSessions()).toBeNull();
      await store.enterReplica(REP_A, false);
      expect(await store.listReplicas()).toMatchObject([{ id: REP_A, named: false }]);
      await store.close();
      pooler.close();
    });

    test('a server that is not there is told with what to do', async () => {
      const nowhere = { database_url: 'postgres://flotilla@127.0.0.1:9/none' };
      await expect(openStore(nowhere, quiet)).rejects.toThrow(/could not be reached.*Check DATABASE_URL/);
    });
  },
);

/** As a client sees PgBouncer: all that PostgreSQL says, but the number of the session is another one. */
async function startPooler(to: number): Promise<{ port: number; close(): void }> {
  const KEY_DATA = Buffer.from([0x4b, 0, 0, 0, 12]);
  const server = createServer((client) => {
    const upstream = connect(to, '127.0.0.1');
    client.on('error', () => upstream.destroy()).pipe(upstream);
    upstream.on('error', () => client.destroy()).on('end', () => client.end());
    upstream.on('data', (data) => {
      const at = data.indexOf(KEY_DATA);
      if (at >= 0) data.writeInt32BE(data.readInt32BE(at + KEY_DATA.length) + 1, at + KEY_DATA.length);
      client.write(data);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, close: () => server.close() };
}
