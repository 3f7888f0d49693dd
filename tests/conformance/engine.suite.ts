import { describe, expect, test } from 'vitest';
import { columnsOf, unnested } from '../../packages/control/src/store/columns.ts';
import { migrate } from '../../packages/control/src/store/migrate.ts';
import { MIGRATIONS } from '../../packages/control/src/store/migrations/all.ts';
import { prepared } from '../../packages/control/src/store/sql.ts';
import { quiet } from '../support/store.ts';
import type { EngineSubject } from './store.suite.ts';

export function engineSuite(subject: EngineSubject): void {
  describe('the engine', () => {
    test('says what an acknowledged write survives', () => {
      const promised = { embedded: 'process death', postgres: 'power loss' };
      expect(subject.store.durability).toBe(promised[subject.store.engine]);
    });

    test('gives the same types on every engine: 64-bit counts as numbers, JSON as values, absence as null', async () => {
      const rows = await subject.sql.query(
        `select 9007199254740991::bigint as big, 1::int as small, 0.5::float8 as real, true as yes, null::text as none,
           '{"a":[1]}'::jsonb as json, 'text' as text, count(*) as count from (values (1), (2)) as v`,
      );
      expect(rows).toEqual([
        {
          big: 9007199254740991,
          small: 1,
          real: 0.5,
          yes: true,
          none: null,
          json: { a: [1] },
          text: 'text',
          count: 2,
        },
      ]);
    });

    test('reads the columns of a batch as they were told: any text, JSON, and what is absent', async () => {
      const columns = { text: 'text', count: 'bigint', yes: 'boolean', json: 'jsonb' } as const;
      const texts = [
        'plain',
        '',
        'null',
        'NULL',
        '{}',
        '{"a":"b"}',
        'a,b',
        ' a ',
        '"',
        '\\',
        '\\n',
        '\\"',
        'é\u{1f600}',
      ];
      const rowsOf = (each: string[]) =>
        each.map((text, count) => ({ text, count, yes: count % 2 === 0, json: { of: [text, null] } }));
      const read = (rows: Partial<ReturnType<typeof rowsOf>[number]>[]) =>
        subject.sql.query(unnested(columns), columnsOf(columns, rows));
      const plain = rowsOf(texts);
      expect(await read(plain)).toEqual(plain);
      const escaped = rowsOf([...texts, 'a\nb\t"c\\', '\u0001']);
      expect(await read(escaped)).toEqual(escaped);
      const refused = await read(rowsOf(['\0', '\ud800x', 'a\n']));
      expect(refused).toEqual(rowsOf(['\uFFFD', '\uFFFDx', 'a\n']));
      const json = { of: [] };
      expect(await read([{ json }])).toEqual([{ text: null, count: null, yes: null, json }]);
      expect(await read([])).toEqual([]);
    });

    test('refuses a 64-bit integer that JavaScript cannot hold instead of rounding it', async () => {
      await expect(subject.sql.query('select 9007199254740993::bigint as big')).rejects.toThrow(
        'beyond the integers',
      );
      await subject.store.ping();
    });

    test('a kept statement whose first execution failed works the next time', async () => {
      const statement = prepared('fails-once', 'select $1::int + $2::int as sum');
      await expect(subject.sql.query(statement, [2 ** 31 - 1, 1])).rejects.toMatchObject({ code: '22003' });
      expect(await subject.sql.query(statement, [1, 1])).toEqual([{ sum: 2 }]);
      await expect(subject.sql.query(statement, [2 ** 31 - 1, 1])).rejects.toMatchObject({ code: '22003' });
      expect(await subject.sql.query(statement, [2, 2])).toEqual([{ sum: 4 }]);
    });

    test('an error inside a transaction undoes it and poisons nothing after it', async () => {
      const { sql } = subject;
      await sql.query('create table if not exists scratch (n int primary key)');
      const broken = sql.transaction(async (tx) => {
        await tx.query('insert into scratch values (1)');
        await tx.query('select 1 / 0');
      });
      await expect(broken).rejects.toThrow('division by zero');
      expect(await sql.query('select n from scratch')).toEqual([]);
      await sql.transaction(async (tx) => void (await tx.query('insert into scratch values (2)')));
      expect(await sql.query('select n from scratch')).toEqual([{ n: 2 }]);
      await sql.query('drop table scratch');
    });

    test('an error that the body swallows still undoes the whole transaction', async () => {
      const { sql } = subject;
      await sql.query('create table if not exists scratch (n int primary key)');
      await sql
        .transaction(async (tx) => {
          await tx.query('insert into scratch values (1)');
          await tx.query('select 1 / 0').catch(() => undefined);
        })
        .catch(() => undefined);
      expect(await sql.query('select n from scratch')).toEqual([]);
      await sql.query('drop table scratch');
    });

    test('statements of others never run inside a transaction', async () => {
      const { sql } = subject;
      await sql.query('create table if not exists scratch (n int primary key)');
      const rolledBack = sql.transaction(async (tx) => {
        await tx.query('insert into scratch values (1)');
        const other = sql.query('insert into scratch values (2)');
        await tx.query('select pg_sleep(0.02)');
        void other.catch(() => undefined);
        throw new Error('undo');
      });
      await expect(rolledBack).rejects.toThrow('undo');
      await expect.poll(() => sql.query('select n from scratch')).toEqual([{ n: 2 }]);
      await sql.query('drop table scratch');
    });

    test('transactions that meet take turns', async () => {
      const { sql } = subject;
      const inOrder: string[] = [];
      const run = (name: string) =>
        sql.transaction(async (tx) => {
          await tx.query('select pg_advisory_xact_lock(42)');
          inOrder.push(`${name} in`);
          await tx.query('select 1');
          inOrder.push(`${name} out`);
        });
      await Promise.all([run('a'), run('b'), run('c')]);
      for (let index = 0; index < inOrder.length; index += 2) {
        expect(inOrder[index + 1]).toBe(inOrder[index]!.replace('in', 'out'));
      }
    });

    test('a hot statement survives its own failure', async () => {
      const statement = { name: 'test-division', text: 'select 10 / $1::int as result' };
      expect(await subject.sql.query(statement, [5])).toEqual([{ result: 2 }]);
      await expect(subject.sql.query(statement, [0])).rejects.toThrow('division by zero');
      expect(await subject.sql.query(statement, [2])).toEqual([{ result: 5 }]);
    });

    test('migrating again changes nothing', async () => {
      const before = await subject.sql.query('select * from schema_migrations');
      await migrate(subject.sql, MIGRATIONS, quiet);
      expect(await subject.sql.query('select * from schema_migrations')).toEqual(before);
    });

    test('a migration that fails midway leaves the schema as it was', async () => {
      const bad = { version: 1000, name: 'bad', statements: ['create table half (n int)', 'select 1 / 0'] };
      await expect(migrate(subject.sql, [...MIGRATIONS, bad], quiet)).rejects.toThrow('division by zero');
      expect(await subject.sql.query(`select to_regclass('half') is null as absent`)).toEqual([
        { absent: true },
      ]);
      expect(await subject.sql.query('select max(version) as version from schema_migrations')).toEqual([
        { version: MIGRATIONS.at(-1)!.version },
      ]);
    });

    test('a schema newer than the program is refused with what to do', async () => {
      await subject.sql.query(`insert into schema_migrations values (999, 'from the future', 0)`);
      try {
        await expect(migrate(subject.sql, MIGRATIONS, quiet)).rejects.toThrow(
          /schema version 999.*Start the newer Flotilla again, or restore a backup/,
        );
      } finally {
        await subject.sql.query('delete from schema_migrations where version = 999');
      }
    });
  });
}
