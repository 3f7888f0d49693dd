import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PGlite } from '@electric-sql/pglite';
import pg from 'pg';
import { fillDataDir, type Place, postgresPlace } from '../support/store.ts';

/** A database as an older program left it, before today's has seen it. */
export interface RecordedStore extends Place {
  /** Its rows, by table. */
  rows: Rows;
}
export type Rows = Record<string, Record<string, unknown>[]>;

const TABLES = `select table_name as name from information_schema.tables
  where table_schema = 'public' and table_type = 'BASE TABLE' order by 1`;

type Ask = (sql: string) => Promise<unknown[]>;

/** Every row of every table, in an order that does not depend on where it lies. */
export async function rowsOf(ask: Ask): Promise<Rows> {
  const rows: Rows = {};
  for (const { name } of (await ask(TABLES)) as { name: string }[]) {
    const found = (await ask(`select to_jsonb(t) as row from ${name} t order by to_jsonb(t)::text`)) as {
      row: Record<string, unknown>;
    }[];
    rows[name] = found.map(({ row }) => row);
  }
  return rows;
}

export async function embeddedAsRecorded(file: string): Promise<RecordedStore> {
  const data_dir = mkdtempSync(join(tmpdir(), 'flotilla-upgrade-'));
  // An empty database, without making one: that takes seconds.
  await fillDataDir(data_dir);
  const startParams = [...PGlite.defaultStartParams, '-c', 'shared_buffers=32MB'];
  const pglite = await PGlite.create(join(data_dir, 'store'), { startParams });
  await pglite.exec('drop schema public cascade; create schema public');
  await pglite.exec(readFileSync(file, 'utf8'));
  const rows = await rowsOf(async (sql) => (await pglite.query(sql)).rows);
  await pglite.close();
  const drop = () => Promise.resolve(rmSync(data_dir, { recursive: true, force: true }));
  return { options: { data_dir }, rows, drop };
}

export async function postgresAsRecorded(server: string, file: string): Promise<RecordedStore> {
  const place = await postgresPlace(server);
  const { database_url } = place.options as { database_url: string };
  const client = new pg.Client({ connectionString: database_url });
  await client.connect();
  await client.query(readFileSync(file, 'utf8'));
  const rows = await rowsOf(async (sql) => (await client.query(sql)).rows as unknown[]);
  await client.end();
  return { ...place, rows };
}
