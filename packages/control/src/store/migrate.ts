import type { Log } from '@flotilla/core';
import { NOW_MS, prepared, type Sql } from './sql.ts';

/** One step of the schema, forward only. Each statement runs alone, all of a migration in one transaction. */
export interface Migration {
  readonly version: number;
  readonly name: string;
  readonly statements: readonly string[];
}

/** Arbitrary, but the same in every version: it is what replicas that start together queue for. */
const MIGRATION_LOCK = 6_121_520_912;

/** An index on millions of rows takes minutes, and a replica that starts meanwhile waits for the lock as long. */
const STATEMENT_TIMEOUT_MS = 86_400_000;

const readVersion = prepared(
  'schema-version',
  'select coalesce(max(version), 0) as version from schema_migrations',
);

/**
 * Brings the schema to this program's version. Replicas that start together take turns (an advisory lock that the
 * server holds until the transaction's end, and drops with a connection that dies); the late ones find nothing to do.
 * A crash midway leaves the schema as it was.
 */
export async function migrate(sql: Sql, migrations: readonly Migration[], log: Log): Promise<void> {
  await sql.transaction(async (tx) => {
    await lockSchema(tx, log);
    await migrateLocked(tx, migrations, log);
  }, STATEMENT_TIMEOUT_MS);
}

/** Held until the transaction's end: no replica starts on the store meanwhile. Who has to wait for it says so. */
export async function lockSchema(tx: Sql, log: Log): Promise<void> {
  const [first] = await tx.query<{ got: boolean }>('select pg_try_advisory_xact_lock($1) as got', [
    MIGRATION_LOCK,
  ]);
  if (first?.got === true) return;
  log.info(
    {},
    'Another process migrates or restores this store, or was killed while its statement goes on: waiting for it.',
  );
  await tx.query('select pg_advisory_xact_lock($1)', [MIGRATION_LOCK]);
}

/** The same within a transaction that has locked the schema. */
export async function migrateLocked(tx: Sql, migrations: readonly Migration[], log: Log): Promise<void> {
  await tx.query(
    `create table if not exists schema_migrations (
       version bigint primary key,
       name text not null,
       applied_at bigint not null
     )`,
  );
  const [found] = await tx.query<{ version: number }>(readVersion);
  const from = found?.version ?? 0;
  const newest = migrations.at(-1)?.version ?? 0;
  if (from > newest) throw new Error(newerSchema(from, newest));
  if (from > 0 && from < newest) {
    log.info(
      { from, to: newest },
      'The schema of the store is being migrated: with millions of rows for minutes.',
    );
  }
  for (const migration of migrations.filter(({ version }) => version > from)) {
    const { version, name } = migration;
    for (const statement of migration.statements) await tx.query(statement);
    await tx.query(
      `insert into schema_migrations (version, name, applied_at)
       values ($1, $2, ${NOW_MS})`,
      [version, name],
    );
    log.info({ version, name }, 'The schema of the store was migrated.');
  }
}

/** @returns the schema's version, 0 where there is none */
export async function schemaVersion(sql: Pick<Sql, 'query'>): Promise<number> {
  const [there] = await sql.query<{ found: boolean }>(
    `select to_regclass('schema_migrations') is not null as found`,
  );
  if (there?.found !== true) return 0;
  return (await sql.query<{ version: number }>(readVersion))[0]?.version ?? 0;
}

function newerSchema(found: number, known: number): string {
  return (
    `The store has schema version ${found}, made by a newer Flotilla; this program knows versions up to ${known}. ` +
    'Nothing was changed. Start the newer Flotilla again, or restore a backup that was made before its first start.'
  );
}
