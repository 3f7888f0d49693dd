import { createHash } from 'node:crypto';
import { type Migration, schemaVersion } from '../migrate.ts';
import type { Engine, Sql } from '../sql.ts';
import { BACKUP_FORMAT, BackupError, type BackupHead, rowPrefix, type Tallies } from './format.ts';
import { readTable } from './read-table.ts';
import { tablesOf, upTo } from './tables.ts';
import { TableTally } from './tally.ts';

export interface DumpOptions {
  migrations: readonly Migration[];
  product_version: string;
  now: Date;
}

/** The whole store as it is at one moment, as the text of a backup: see `format.ts`. Each piece is whole lines. */
export async function* dumpStore(engine: Engine, options: DumpOptions): AsyncGenerator<string> {
  const snapshot = await engine.snapshot();
  try {
    yield* dumpSnapshot(snapshot.sql, engine.kind, options);
  } finally {
    await snapshot.close();
  }
}

async function* dumpSnapshot(
  sql: Pick<Sql, 'query'>,
  engine: Engine['kind'],
  { migrations, product_version, now }: DumpOptions,
): AsyncGenerator<string> {
  const schema_version = await schemaVersion(sql);
  assertKnown(schema_version, migrations);
  // What a time with a zone reads as must not depend on the server's place.
  await sql.query(`set local timezone to 'UTC'`);
  const tables = tablesOf(upTo(schema_version, migrations));
  const hash = createHash('sha256');
  const hashed = (text: string) => {
    hash.update(text);
    return text;
  };
  const head: BackupHead = {
    flotilla_backup: BACKUP_FORMAT,
    schema_version,
    product_version,
    engine,
    created_at: now.toISOString(),
    tables,
  };
  yield hashed(`${JSON.stringify(head)}\n`);
  const tallies: Tallies = {};
  for (const table of tables) {
    const tally = new TableTally();
    const prefix = rowPrefix(table);
    for await (const rows of readTable(sql, table)) {
      for (const row of rows) tally.add(row);
      yield hashed(rows.map((row) => `${prefix}${row}}\n`).join(''));
    }
    tallies[table] = tally.result();
  }
  yield `${JSON.stringify({ end: true, tables: tallies, sha256: hash.digest('hex') })}\n`;
}

function assertKnown(schema_version: number, migrations: readonly Migration[]): void {
  const newest = migrations.at(-1)?.version ?? 0;
  if (schema_version === 0) {
    throw new BackupError('There is no store of Flotilla here: nothing has been written to this place yet.');
  }
  if (schema_version > newest) {
    throw new BackupError(
      `The store has schema version ${schema_version}, made by a newer Flotilla; this program knows versions up to ` +
        `${newest} and could miss tables. Use the newer one.`,
    );
  }
}
