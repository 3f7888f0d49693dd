import type { Log } from '@flotilla/core';
import { type Migration, migrateLocked } from '../migrate.ts';
import { quoted, tablesOf, upTo } from './tables.ts';
import type { Sql } from '../sql.ts';
import { BackupError, type BackupEnd, type BackupHead, type Tallies } from './format.ts';
import type { BackupItem } from './lines.ts';
import { readTable } from './read-table.ts';
import { TableTally } from './tally.ts';

/**
 * Puts a backup into a store whose tables of ours are gone, within one transaction:
 *
 *     schema of the backup's version ─▶ its rows ─▶ read back and compared ─▶ schema of this program's version
 *
 * So an old backup goes through the same migrations as an old store does, data and all.
 */
const BATCH_ROWS = 500;
const BATCH_BYTES = 1024 * 1024;

export interface Loaded {
  head: BackupHead;
  tables: Tallies;
}

export async function loadBackup(
  tx: Sql,
  items: AsyncIterable<BackupItem>,
  migrations: readonly Migration[],
  log: Log,
): Promise<Loaded> {
  let head: BackupHead | undefined;
  let end: BackupEnd | undefined;
  let batch: { table: string; rows: string[]; bytes: number } | undefined;
  const inserts = new Map<string, string>();
  const flush = async () => {
    if (batch === undefined) return;
    const { table, rows } = batch;
    batch = undefined;
    await tx.query(inserts.get(table)!, [`[${rows.join(',')}]`]);
  };
  for await (const item of items) {
    if ('head' in item) {
      head = item.head;
      await makeSchema(tx, head, migrations, log);
      for (const table of head.tables) inserts.set(table, await insertInto(tx, table));
    } else if ('end' in item) {
      await flush();
      end = item.end;
    } else {
      if (batch !== undefined && batch.table !== item.table) await flush();
      batch ??= { table: item.table, rows: [], bytes: 0 };
      batch.rows.push(item.row);
      batch.bytes += item.row.length;
      if (batch.rows.length >= BATCH_ROWS || batch.bytes >= BATCH_BYTES) await flush();
    }
  }
  if (head === undefined || end === undefined) throw new BackupError('The backup has no end.');
  await compare(tx, head, end);
  await advanceSequences(tx, head.tables);
  await migrateLocked(tx, migrations, log);
  return { head, tables: end.tables };
}

/** @throws BackupError for a backup that this program cannot hold; nothing was changed */
export function assertFits(head: BackupHead, migrations: readonly Migration[]): void {
  const newest = migrations.at(-1)?.version ?? 0;
  if (head.schema_version > newest) {
    throw new BackupError(
      `This backup has schema version ${head.schema_version}, made by Flotilla ${head.product_version}; this program ` +
        `knows versions up to ${newest}. Nothing was changed. Restore it with that Flotilla or a newer one.`,
    );
  }
  const unknown = head.tables.filter(
    (table) => !tablesOf(upTo(head.schema_version, migrations)).includes(table),
  );
  if (unknown.length > 0) {
    throw new BackupError(
      `This backup has tables that schema version ${head.schema_version} does not have: ${unknown.join(', ')}. ` +
        'Nothing was changed.',
    );
  }
}

async function makeSchema(
  tx: Sql,
  head: BackupHead,
  migrations: readonly Migration[],
  log: Log,
): Promise<void> {
  assertFits(head, migrations);
  await migrateLocked(tx, upTo(head.schema_version, migrations), { ...log, info: () => undefined });
  // Migrations put rows of their own into new tables; the backup has them as they became.
  for (const table of tablesOf(upTo(head.schema_version, migrations))) {
    await tx.query(`delete from ${quoted(table)}`);
  }
}

/** What the database computes by itself is left to it. */
async function insertInto(tx: Sql, table: string): Promise<string> {
  const columns = await tx.query<{ name: string }>(
    `select column_name as name from information_schema.columns
     where table_schema = current_schema() and table_name = $1 and is_generated = 'NEVER' order by ordinal_position`,
    [table],
  );
  const names = columns.map(({ name }) => quoted(name)).join(', ');
  return `insert into ${quoted(table)} (${names}) overriding system value
    select ${names} from jsonb_populate_recordset(null::${quoted(table)}, $1::jsonb)`;
}

/** What is in the tables now, read as the backup was written, is what the backup says it has. */
async function compare(tx: Sql, head: BackupHead, end: BackupEnd): Promise<void> {
  await tx.query(`set local timezone to 'UTC'`);
  for (const table of head.tables) {
    const tally = new TableTally();
    for await (const rows of readTable(tx, table)) for (const row of rows) tally.add(row);
    const is = tally.result();
    const wanted = end.tables[table];
    if (wanted === undefined || is.rows !== wanted.rows || is.digest !== wanted.digest) {
      throw new BackupError(
        `The table ${table} did not arrive as it was saved (${is.rows} rows of ${wanted?.rows ?? 0}). Nothing was changed.`,
      );
    }
  }
}

/** Numbers that the database gives out go on behind those that were restored. */
async function advanceSequences(tx: Sql, tables: readonly string[]): Promise<void> {
  for (const table of tables) {
    const columns = await tx.query<{ name: string; sequence: string }>(
      `select column_name as name, pg_get_serial_sequence(quote_ident(table_name), column_name) as sequence
       from information_schema.columns
       where table_schema = current_schema() and table_name = $1
         and pg_get_serial_sequence(quote_ident(table_name), column_name) is not null`,
      [table],
    );
    for (const { name, sequence } of columns) {
      await tx.query(
        `select setval($1::regclass, coalesce(max(${quoted(name)}), 1), max(${quoted(name)}) is not null)
         from ${quoted(table)}`,
        [sequence],
      );
    }
  }
}
