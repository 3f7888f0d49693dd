import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Log } from '@flotilla/core';
import { openStopped } from './backup/place.ts';
import { DataDirInUse } from './data-dir-lock.ts';
import { schemaVersion } from './migrate.ts';
import { MIGRATIONS } from './migrations/all.ts';
import type { StoreOptions } from './open.ts';

/** What can be said of a store without changing it. */
export interface StoreReport {
  state: 'open' | 'in use' | 'absent';
  /** Of `in use`: by whom. */
  holder: string | null;
  server_version: string | null;
  schema_version: number;
  newest_schema: number;
  /** False where a power loss can take what was acknowledged. */
  durable: boolean;
}

/** @throws Error where it cannot be reached or opened, with what to do */
export async function inspectStore(place: StoreOptions, log: Log): Promise<StoreReport> {
  const report: StoreReport = {
    state: 'absent',
    holder: null,
    server_version: null,
    schema_version: 0,
    newest_schema: MIGRATIONS.at(-1)?.version ?? 0,
    durable: false,
  };
  if ('data_dir' in place && !existsSync(join(resolve(place.data_dir), 'store'))) return report;
  let engine: Awaited<ReturnType<typeof openStopped>>;
  try {
    engine = await openStopped(place, log);
  } catch (error) {
    if (error instanceof DataDirInUse) return { ...report, state: 'in use', holder: error.holder };
    throw error;
  }
  try {
    const [server] = await engine.query<{ version: string; fsync: string; synchronous_commit: string }>(
      `select current_setting('server_version') as version, current_setting('fsync') as fsync,
         current_setting('synchronous_commit') as synchronous_commit`,
    );
    return {
      ...report,
      state: 'open',
      server_version: server?.version ?? null,
      schema_version: await schemaVersion(engine),
      durable: server?.fsync !== 'off' && server?.synchronous_commit !== 'off',
    };
  } finally {
    await engine.close();
  }
}
