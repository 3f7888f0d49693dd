import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';

/**
 * One process per data directory. PGlite takes no lock of its own, and two processes on one directory destroy it.
 *
 * The lock is the kernel's: SQLite holds a byte-range lock on `store.lock` for as long as its transaction is open, on
 * Linux, macOS and Windows, between containers that share the directory, and between threads of one process. The kernel
 * drops it when the process dies, however it dies, so there is no stale lock to judge, and no moment in which two
 * processes can both take over. `store.holder.json` only tells people who holds it, and proves nothing.
 *
 *     free ── BEGIN EXCLUSIVE ──▶ held ── release(), or the process ends ──▶ free
 */
export interface DataDirLock {
  release(): void;
}

interface Holder {
  pid: number;
  host: string;
  since: string;
}

const SQLITE_BUSY = 5;

/** Another process has the directory; the message names it and says what to do. */
export class DataDirInUse extends Error {
  override readonly name = 'DataDirInUse';
  readonly holder: string;

  constructor(data_dir: string, holder: Holder | undefined, options: ErrorOptions) {
    const who =
      holder === undefined
        ? 'another process'
        : `process ${holder.pid} on ${holder.host} since ${holder.since}`;
    super(
      `The data directory ${data_dir} is in use by ${who}. ` +
        'Stop that process first, or give this one a directory of its own (--data-dir or FLOTILLA_DATA_DIR).',
      options,
    );
    this.holder = who;
  }
}

/** @throws Error that names the directory and its holder, if another process has it */
export function lockDataDir(data_dir: string): DataDirLock {
  const holderFile = join(data_dir, 'store.holder.json');
  const lock = new DatabaseSync(join(data_dir, 'store.lock'));
  try {
    lock.exec('pragma journal_mode = memory; begin exclusive');
  } catch (error) {
    lock.close();
    if (!isBusy(error)) throw error;
    throw new DataDirInUse(data_dir, readHolder(holderFile), { cause: error });
  }
  writeHolder(holderFile);
  let held = true;
  return {
    release() {
      if (!held) return;
      held = false;
      rmSync(holderFile, { force: true });
      lock.close();
    },
  };
}

function isBusy(error: unknown): boolean {
  return error instanceof Error && 'errcode' in error && error.errcode === SQLITE_BUSY;
}

function writeHolder(file: string): void {
  const holder: Holder = { pid: process.pid, host: hostname(), since: new Date().toISOString() };
  writeFileSync(`${file}.new`, JSON.stringify(holder), { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

function readHolder(file: string): Holder | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as Holder;
  } catch {
    return undefined; // between its lock and its note
  }
}
