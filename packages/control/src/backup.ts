import { type Log, timings } from '@flotilla/core';
import { dumpStore } from './store/backup/dump.ts';
import { openStopped } from './store/backup/place.ts';
import * as restore from './store/backup/restore.ts';
import { MIGRATIONS } from './store/migrations/all.ts';
import type { StoreOptions } from './store/open.ts';
import { version } from './version.ts';

/** Backups as the commands take and use them, without a control plane: with this program's schema and version. */
export { checkBackup, type Restored } from './store/backup/restore.ts';

/** The text of a backup of a database, or of a data directory that no process has open. */
export async function* backupOf(place: StoreOptions, log: Log): AsyncGenerator<string> {
  const engine = await openStopped(place, log);
  try {
    yield* dumpStore(engine, { migrations: MIGRATIONS, product_version: version(), now: new Date() });
  } finally {
    await engine.close();
  }
}

export interface FillOptions {
  log: Log;
  heartbeat_ms: number;
  /** Give up what is there now. */
  replace: boolean;
}

export function restoreBackup(
  file: string,
  to: StoreOptions,
  options: FillOptions,
): Promise<restore.Restored> {
  return restore.restoreBackup(file, to, fill(options));
}

export function copyStore(
  from: StoreOptions,
  to: StoreOptions,
  options: FillOptions,
): Promise<restore.Restored> {
  return restore.copyStore(from, to, { ...fill(options), product_version: version() });
}

function fill({ log, heartbeat_ms, replace }: FillOptions): restore.RestoreOptions {
  return { migrations: MIGRATIONS, log, lease_ttl_ms: timings(heartbeat_ms).lease_ttl_ms, replace };
}
