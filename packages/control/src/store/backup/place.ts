import { existsSync, renameSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Log } from '@flotilla/core';
import { lockDataDir } from '../data-dir-lock.ts';
import type { StoreOptions } from '../open.ts';
import { makeDirectory, openUnlocked } from '../pglite.ts';
import { openPostgres } from '../postgres.ts';
import type { Engine } from '../sql.ts';
import { BackupError } from './format.ts';

/** Where a store lies that no control plane has open: opened as it is, its schema untouched. */
const STATEMENT_TIMEOUT_MS = 3_600_000;
/** Longer than two bumps of a replica's row: one may come late. */
const WATCH_MS = 2500;

/** @throws BackupError where there is no store, or a control plane is at work on it */
export async function openStopped(place: StoreOptions, log: Log): Promise<Engine> {
  if ('database_url' in place)
    return openPostgres(place.database_url, log, { statement_timeout_ms: STATEMENT_TIMEOUT_MS });
  const directory = resolve(place.data_dir);
  if (!existsSync(join(directory, 'store'))) {
    throw new BackupError(
      `There is no store in ${directory}. Name the data directory of \`flotilla up\` or \`control\`.`,
    );
  }
  const lock = lockDataDir(directory);
  try {
    return await openUnlocked(directory, log, lock);
  } catch (error) {
    lock.release();
    throw error;
  }
}

/** @throws Error where a replica's row moves while this looks on */
export async function assertNobodyServes(engine: Engine): Promise<void> {
  if (engine.kind === 'embedded') return; // whoever has opened it has its lock
  const before = await bumps(engine);
  if (before.size === 0) return;
  await new Promise((over) => setTimeout(over, WATCH_MS));
  for (const [id, count] of await bumps(engine)) {
    if (before.get(id) === count) continue;
    throw new BackupError(
      `A control plane (${id}) is running on this database. Stop it first: what it wrote meanwhile would be lost.`,
    );
  }
}

async function bumps(engine: Engine): Promise<Map<string, number>> {
  const [there] = await engine.query<{ found: boolean }>(
    `select to_regclass('replicas') is not null as found`,
  );
  if (there?.found !== true) return new Map();
  const rows = await engine.query<{ id: string; bumps: number }>('select id, bumps from replicas');
  return new Map(rows.map((row) => [row.id, row.bumps]));
}

/**
 * Fills a place and leaves it as it was where that fails: a database in one transaction of `fill`, a data directory by
 * making a whole store beside the one it has, then renaming.
 * @param prepare refuses the place; or says whether there is anything in it, which is then kept beside a new store
 * @returns where the store that was replaced lies now
 */
export async function fillPlace<T>(
  place: StoreOptions,
  log: Log,
  prepare: (engine: Engine) => Promise<{ empty: boolean }>,
  fill: (engine: Engine) => Promise<T>,
): Promise<{ result: T; kept: string | null }> {
  if ('database_url' in place) {
    const engine = await openStopped(place, log);
    try {
      await prepare(engine);
      return { result: await fill(engine), kept: null };
    } finally {
      await engine.close();
    }
  }
  const directory = resolve(place.data_dir);
  makeDirectory(directory);
  const lock = lockDataDir(directory);
  const final = join(directory, 'store');
  // Named so that the next start clears it away, should this process die.
  const fresh = join(directory, `store.new-${process.pid}`);
  try {
    const before = existsSync(final) ? await using(await openUnlocked(directory, log), prepare) : null;
    rmSync(fresh, { recursive: true, force: true });
    makeDirectory(fresh);
    const result = await using(await openUnlocked(fresh, log), fill);
    const kept = before?.empty === false ? join(directory, `store.replaced-${Date.now()}`) : null;
    if (kept !== null) renameSync(final, kept);
    else rmSync(final, { recursive: true, force: true });
    renameSync(join(fresh, 'store'), final);
    return { result, kept };
  } finally {
    rmSync(fresh, { recursive: true, force: true });
    lock.release();
  }
}

async function using<T>(engine: Engine, use: (engine: Engine) => Promise<T>): Promise<T> {
  try {
    return await use(engine);
  } finally {
    await engine.close();
  }
}
