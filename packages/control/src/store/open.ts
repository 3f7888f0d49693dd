import type { Log, Store } from '@flotilla/core';
import { type Migration, migrate } from './migrate.ts';
import { MIGRATIONS } from './migrations/all.ts';
import { openPglite } from './pglite.ts';
import { openPostgres } from './postgres.ts';
import type { Engine } from './sql.ts';
import { storeOn } from './store.ts';

/** `replica`: whose store it is, by which others can tell that it is connected. */
export type StoreOptions = { database_url: string; replica?: string } | { data_dir: string };

/** Opens the store and brings its schema to this program's version, or says why not and what to do. */
export async function openStore(options: StoreOptions, log: Log): Promise<Store> {
  return storeOn(await openEngine(options, log), log);
}

/** @returns the engine below a store, its schema migrated */
export async function openEngine(
  options: StoreOptions,
  log: Log,
  migrations: readonly Migration[] = MIGRATIONS,
): Promise<Engine> {
  const engine =
    'database_url' in options
      ? await openPostgres(options.database_url, log, { replica: options.replica })
      : await openPglite(options.data_dir, log);
  try {
    await migrate(engine, migrations, log);
    return engine;
  } catch (error) {
    await engine.close();
    throw error;
  }
}
