import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import type { Log } from '@flotilla/core';
import { lockSchema, type Migration, schemaVersion } from '../migrate.ts';
import type { StoreOptions } from '../open.ts';
import type { Engine, Sql } from '../sql.ts';
import { dumpStore } from './dump.ts';
import { BackupError, type BackupHead, type Tallies } from './format.ts';
import { type BackupItem, readBackup } from './lines.ts';
import { assertFits, loadBackup } from './load.ts';
import { assertNobodyServes, fillPlace, openStopped } from './place.ts';
import { BOOKKEEPING_TABLE, quoted, tablesOf } from './tables.ts';
import { takeOver } from './take-over.ts';

export interface RestoreOptions {
  migrations: readonly Migration[];
  log: Log;
  /** How long a node of the source may still be at work: see `take-over.ts`. */
  lease_ttl_ms: number;
  /** What is there now goes. */
  replace: boolean;
}

export interface Restored {
  head: BackupHead;
  tables: Tallies;
  requeued: number;
  /** Where the store that was replaced lies now, if it lies in a data directory. */
  kept: string | null;
}

/** What is in a backup, once all of it was read and found whole. @throws BackupError */
export async function checkBackup(file: string): Promise<{ head: BackupHead; tables: Tallies }> {
  let head: BackupHead | undefined;
  let tables: Tallies | undefined;
  const found: Record<string, number> = {};
  for await (const item of readFile(file)) {
    if ('head' in item) head = item.head;
    else if ('end' in item) tables = item.end.tables;
    else found[item.table] = (found[item.table] ?? 0) + 1;
  }
  for (const table of head!.tables) {
    if (tables![table]?.rows === (found[table] ?? 0)) continue;
    throw new BackupError(
      `This backup is damaged: it has ${found[table] ?? 0} rows of ${table}, its end says otherwise.`,
    );
  }
  return { head: head!, tables: tables! };
}

/** Reads all of the file before it changes anything. */
export async function restoreBackup(
  file: string,
  place: StoreOptions,
  options: RestoreOptions,
): Promise<Restored> {
  const { head } = await checkBackup(file);
  assertFits(head, options.migrations);
  return fillFrom(() => readFile(file), place, options);
}

/** Copies a store that nothing is at work on to another place, by way of a backup that no file holds. */
export async function copyStore(
  from: StoreOptions,
  to: StoreOptions,
  options: RestoreOptions & { product_version: string },
): Promise<Restored> {
  const source = await openStopped(from, options.log);
  try {
    await assertNobodyServes(source);
    const { migrations, product_version } = options;
    const dump = dumpStore(source, { migrations, product_version, now: new Date() });
    // The snapshot takes seconds to make, and the other store ends a transaction that is silent for so long.
    const first = await dump.next();
    try {
      return await fillFrom(() => readBackup(encoded(first, dump)), to, options);
    } finally {
      await dump.return(undefined);
    }
  } finally {
    await source.close();
  }
}

async function fillFrom(
  items: () => AsyncIterable<BackupItem>,
  place: StoreOptions,
  { migrations, log, lease_ttl_ms, replace }: RestoreOptions,
): Promise<Restored> {
  const tables = tablesOf(migrations);
  const prepare = async (engine: Engine) => {
    await assertNobodyServes(engine);
    assertNotNewer(await schemaVersion(engine), migrations);
    const full = await firstFull(engine, tables);
    if (full !== undefined && !replace) throw notEmpty(full);
    return { empty: full === undefined };
  };
  const { result, kept } = await fillPlace(place, log, prepare, async (engine) => {
    const loaded = await engine.transaction(async (tx) => {
      await lockSchema(tx, log);
      const full = replace ? undefined : await firstFull(tx, tables);
      if (full !== undefined) throw notEmpty(full);
      for (const table of [BOOKKEEPING_TABLE, ...tables.toReversed()]) {
        await tx.query(`drop table if exists ${quoted(table)}`);
      }
      const { head, tables: tallies } = await loadBackup(tx, items(), migrations, log);
      return { head, tables: tallies, ...(await takeOver(tx, lease_ttl_ms)) };
    });
    await engine.query('analyze');
    return loaded;
  });
  return { ...result, kept };
}

/** It may have tables that this program would not know to drop. */
function assertNotNewer(version: number, migrations: readonly Migration[]): void {
  if (version <= (migrations.at(-1)?.version ?? 0)) return;
  throw new BackupError(
    `The store there has schema version ${version}, made by a newer Flotilla. Nothing was changed. Use the newer one, ` +
      'or give another place.',
  );
}

/** Of what every new store has, the row of its configuration; and rows of replicas that come and go. */
const NEVER_EMPTY = new Set(['configuration', 'replicas']);

/** @returns a table that has rows */
async function firstFull(sql: Pick<Sql, 'query'>, tables: readonly string[]): Promise<string | undefined> {
  if ((await schemaVersion(sql)) === 0) return undefined;
  for (const table of tables.filter((name) => !NEVER_EMPTY.has(name))) {
    const [there] = await sql.query<{ found: boolean }>('select to_regclass($1) is not null as found', [
      table,
    ]);
    if (there?.found !== true) continue;
    const [row] = await sql.query<{ some: boolean }>(`select exists (select from ${quoted(table)}) as some`);
    if (row?.some === true) return table;
  }
  return undefined;
}

function notEmpty(table: string): BackupError {
  return new BackupError(
    `The store there is not empty (${table} has rows). Nothing was changed. Give another place, or --replace to give ` +
      'up what is there.',
  );
}

async function* readFile(file: string): AsyncGenerator<BackupItem> {
  const source = createReadStream(file);
  const gunzip = createGunzip();
  source.on('error', (error) => gunzip.destroy(error));
  source.pipe(gunzip);
  try {
    yield* readBackup(gunzip as Readable & AsyncIterable<Buffer>);
  } catch (error) {
    throw readable(error, file);
  } finally {
    source.destroy();
    gunzip.destroy();
  }
}

function readable(error: unknown, file: string): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT') return new BackupError(`There is no file ${file}.`);
  if (code === 'Z_BUF_ERROR') {
    return new BackupError(
      `${file} ends in the middle: it was cut short. Nothing was changed; use another backup.`,
    );
  }
  if (code?.startsWith('Z_') === true) {
    return new BackupError(
      `${file} is damaged, or no backup of Flotilla (${(error as Error).message}). Nothing was changed.`,
    );
  }
  return error;
}

async function* encoded(first: IteratorResult<string>, rest: AsyncGenerator<string>): AsyncGenerator<Buffer> {
  if (first.done === true) return;
  yield Buffer.from(first.value);
  for await (const text of rest) yield Buffer.from(text);
}
