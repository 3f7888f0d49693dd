import { createHash, randomBytes } from 'node:crypto';
import { constants, cpSync, existsSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Log } from '@flotilla/core';
import pg from 'pg';
import { MIGRATIONS } from '../../packages/control/src/store/migrations/all.ts';
import { openStore, type StoreOptions } from '../../packages/control/src/store/open.ts';

/** The engine under test: PGlite, or the PostgreSQL server of FLOTILLA_TEST_DATABASE_URL. */
export const testServer = process.env['FLOTILLA_TEST_DATABASE_URL'] || undefined;

export const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };

export interface Place {
  options: StoreOptions;
  drop: () => Promise<void>;
}

/** A fresh database on the PostgreSQL server under test, or undefined where PGlite is. */
export async function testDatabaseUrl(): Promise<{ url: string; drop: () => Promise<void> } | undefined> {
  return testServer === undefined ? undefined : freshDatabase(testServer);
}

export async function postgresPlace(server: string): Promise<Place> {
  const { url, drop } = await freshDatabase(server);
  return { options: { database_url: url }, drop };
}

export async function embeddedPlace(): Promise<Place & { data_dir: string }> {
  const data_dir = await filledDataDir();
  const drop = () => Promise.resolve(rmSync(data_dir, { recursive: true, force: true }));
  return { options: { data_dir }, data_dir, drop };
}

/** A database of its own on that server, gone with `drop`. */
export async function freshDatabase(server: string): Promise<{ url: string; drop: () => Promise<void> }> {
  const name = `flotilla_test_${randomBytes(8).toString('hex')}`;
  await onServer(server, `create database ${name}`);
  const url = new URL(server);
  url.pathname = `/${name}`;
  return { url: url.href, drop: () => onServer(server, `drop database if exists ${name} with (force)`) };
}

async function onServer(server: string, statement: string): Promise<void> {
  const client = new pg.Client({ connectionString: server });
  await client.connect();
  try {
    await client.query(statement);
  } finally {
    await client.end();
  }
}

async function filledDataDir(): Promise<string> {
  const data_dir = mkdtempSync(join(tmpdir(), 'flotilla-test-'));
  await fillDataDir(data_dir);
  return data_dir;
}

/** Makes it the data directory of a store that is empty, its schema in place. */
export async function fillDataDir(data_dir: string): Promise<void> {
  cpSync(await storeTemplate(), data_dir, { recursive: true, mode: constants.COPYFILE_FICLONE });
}

/**
 * Making a store takes seconds, so it is made once for all runs on this machine and copied; another version of PGlite
 * or other migrations make their own. A store that is made for real: tests/long/embedded.test.ts.
 */
export async function storeTemplate(): Promise<string> {
  const manifest = new URL('../../node_modules/@electric-sql/pglite/package.json', import.meta.url);
  const { version } = JSON.parse(readFileSync(manifest, 'utf8')) as { version: string };
  const schema = createHash('sha256').update(JSON.stringify(MIGRATIONS)).digest('hex').slice(0, 12);
  const place = join(tmpdir(), `flotilla-test-store-${version}-${schema}`);
  if (existsSync(place)) return place;
  const fresh = mkdtempSync(`${place}-`);
  const store = await openStore({ data_dir: fresh }, quiet);
  await store.close();
  rmSync(join(fresh, 'store.lock'), { force: true });
  try {
    renameSync(fresh, place);
  } catch {
    rmSync(fresh, { recursive: true }); // another run was first
  }
  return place;
}
