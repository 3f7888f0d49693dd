import { chmodSync, existsSync, mkdirSync } from 'node:fs';
import { mkdtemp, rm, statfs } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { Log } from '@flotilla/core';
import { FlotillaError } from '@flotilla/protocol';
import { type DataDirLock, lockDataDir } from './data-dir-lock.ts';
import { asStoreError } from './failure.ts';
import { copyRoughly } from './pglite-copy.ts';
import type { Answer, Failure, Opened, Request, Work, WorkerOptions } from './pglite-messages.ts';
import { startUpkeep } from './pglite-upkeep.ts';
import { BEGIN_SNAPSHOT, type Engine, type Param, type Snapshot, type Sql, type Statement } from './sql.ts';

/**
 * The embedded store as the main thread sees it: the lock on the data directory, the worker that owns the database, and
 * the requests that wait for its answers. PGlite never runs on this thread, where a long statement would stop beats.
 *
 *     opening ──worker says so──▶ open ──worker dies, or its engine gives up──▶ broken ──another has opened it──▶ open
 *     any ──close()──▶ closed
 *
 * While it is broken what waits and what comes is `unavailable`, and it is tried again until it opens.
 * What brings a worker down, a disk without room for its log above all, passes; and who would wait for somebody to start
 * this process again would serve nobody until then.
 */
export async function openPglite(data_dir: string, log: Log): Promise<Engine> {
  const directory = resolve(data_dir);
  makeDirectory(directory);
  const lock = lockDataDir(directory);
  const kept = existsSync(join(directory, 'store'));
  // Before what takes longest of a start: who waits for it sees why.
  log.info(
    {},
    kept ? 'Opening the embedded store.' : 'Making the embedded store: the first start takes longer.',
  );
  try {
    return await openUnlocked(directory, log, lock);
  } catch (error) {
    lock.release();
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(
      `The embedded store in ${directory} could not be opened: ${reason} ` +
        'If its files are damaged, restore them from a backup, or move the directory away to begin anew.',
      { cause: error },
    );
  }
}

/**
 * A store in a directory that nobody else can know of, or whose lock the caller has.
 * @param lock released when the store is closed
 */
export async function openUnlocked(
  directory: string,
  log: Log,
  lock: DataDirLock | null = null,
): Promise<Engine> {
  return new Pglite(directory, await startWorker({ data_dir: directory }), lock, log);
}

export function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    chmodSync(directory, 0o700);
  } catch (error) {
    throw new Error(
      `The data directory ${directory} cannot be made or used (${(error as Error).message}). ` +
        'Give another with --data-dir or FLOTILLA_DATA_DIR.',
      { cause: error },
    );
  }
}

async function startWorker(options: WorkerOptions): Promise<Worker> {
  const file = import.meta.url.endsWith('.ts') ? './pglite-worker.ts' : './pglite-worker.js';
  const worker = new Worker(new URL(file, import.meta.url), { workerData: options, name: 'flotilla-store' });
  const opened = await new Promise<Opened>((answer, fail) => {
    worker.once('message', answer);
    worker.on('error', fail);
    worker.on('exit', (code) => fail(new Error(`its thread ended with code ${code}`)));
  });
  if (opened.opened) return worker;
  await worker.terminate();
  throw errorOf(opened.failure);
}

const MIB = 1024 * 1024;
const ROOM_LEFT_BYTES = 256 * MIB;

/** Until the store is opened again; twice that after each failure. */
const REOPEN_AFTER_MS = 250;
const REOPEN_MOST_MS = 5000;

interface Waiter {
  resolve(rows: unknown[]): void;
  reject(error: Error): void;
}

class Pglite implements Engine {
  readonly kind = 'embedded';
  readonly durability = 'process death';
  /** The data directory's lock tells. */
  readonly openSessions = () => Promise.resolve(null);
  readonly #directory: string;
  #worker: Worker;
  readonly #lock: DataDirLock | null;
  readonly #log: Log;
  readonly #stopUpkeep: () => void;
  readonly #waiters = new Map<number, Waiter>();
  #requests = 0;
  #transactions = 0;
  #broken: Error | undefined;
  #reopening: Promise<void> | undefined;
  readonly #closing = new AbortController();

  constructor(directory: string, worker: Worker, lock: DataDirLock | null, log: Log) {
    this.#directory = directory;
    this.#worker = worker;
    this.#lock = lock;
    this.#log = log;
    this.#listen(worker);
    // What is open for one purpose only is gone before it needs any; a snapshot could not be vacuumed at all.
    this.#stopUpkeep = lock === null ? () => undefined : startUpkeep(this, log);
  }

  query<Row>(statement: Statement | string, params: readonly Param[] = []): Promise<Row[]> {
    return this.#query<Row>(null, statement, params);
  }

  async transaction<T>(body: (sql: Sql) => Promise<T>): Promise<T> {
    const transaction = ++this.#transactions;
    await this.#ask({ do: 'begin', transaction });
    const sql: Sql = {
      query: (statement, params = []) => this.#query(transaction, statement, params),
      transaction: () =>
        Promise.reject(new Error('A transaction is already open; use the Sql that it was given.')),
    };
    let result: T;
    try {
      result = await body(sql);
    } catch (error) {
      // The body's error is the one to tell; a rollback can only fail with the whole store.
      await this.#ask({ do: 'end', transaction, commit: false }).catch(() => undefined);
      throw error;
    }
    await this.#ask({ do: 'end', transaction, commit: true });
    return result;
  }

  /**
   * PGlite has one connection, and a transaction that is read for minutes would stop every settlement meanwhile. So the
   * store's files are copied, of which only the last step holds the others up, and the copy is opened by a thread of
   * its own (400 MB of memory for as long as it is read).
   */
  async snapshot(): Promise<Snapshot> {
    await this.#assertRoom();
    const directory = await mkdtemp(join(this.#directory, 'store.copy-'));
    const drop = () => rm(directory, { recursive: true, force: true });
    try {
      const copy = join(directory, 'store');
      const noted = await copyRoughly(join(this.#directory, 'store'), copy);
      await this.#ask({ do: 'copy', to: copy, noted });
      const sql = await openUnlocked(directory, this.#log);
      const close = async () => {
        await sql.close();
        await drop();
      };
      await sql.query(BEGIN_SNAPSHOT).catch(async (error: unknown) => {
        await close();
        throw error;
      });
      return { sql, close };
    } catch (error) {
      await drop();
      throw error;
    }
  }

  /** A disk that a copy fills up would stop the store itself. */
  async #assertRoom(): Promise<void> {
    const [size] = await this.query<{ bytes: number }>(
      'select sum(pg_database_size(oid))::bigint as bytes from pg_database',
    );
    const needed = 1.2 * (size?.bytes ?? 0) + ROOM_LEFT_BYTES;
    const { bavail, bsize } = await statfs(this.#directory);
    if (bavail * bsize >= needed) return;
    throw new FlotillaError(
      'unavailable',
      `A snapshot of the embedded store needs ${Math.ceil(needed / MIB)} MB beside it for a moment; ` +
        `the disk has ${Math.floor((bavail * bsize) / MIB)} MB left. Make room, then try again.`,
    );
  }

  async close(): Promise<void> {
    this.#stopUpkeep();
    this.#closing.abort();
    await this.#reopening;
    if (this.#broken === undefined) {
      // A disk that is full keeps it from writing what it would begin with next time; nothing is lost.
      await this.#ask({ do: 'close' }).catch((error: unknown) => {
        this.#log.warn({ error }, 'The embedded store could not be closed in order.');
      });
      this.#broken = new Error('The store is closed.');
    }
    await this.#worker.terminate();
    this.#lock?.release();
  }

  #query<Row>(
    transaction: number | null,
    statement: Statement | string,
    params: readonly Param[],
  ): Promise<Row[]> {
    const { name, text } = typeof statement === 'string' ? { name: '', text: statement } : statement;
    return this.#ask({ do: 'query', transaction, name, text, params }) as Promise<Row[]>;
  }

  #ask(work: Work): Promise<unknown[]> {
    if (this.#broken !== undefined) return Promise.reject(asStoreError(this.#broken));
    const id = ++this.#requests;
    return new Promise((resolve, reject) => {
      this.#waiters.set(id, { resolve, reject });
      this.#worker.postMessage({ ...work, id } satisfies Request);
    });
  }

  #listen(worker: Worker): void {
    worker.on('message', (answer: Answer) => this.#settle(answer));
    worker.on('error', (error) => this.#break(error));
    worker.on('exit', (code) =>
      this.#break(new Error(`The thread of the embedded store ended with code ${code}.`)),
    );
  }

  #settle(answer: Answer): void {
    const waiter = this.#waiters.get(answer.id);
    this.#waiters.delete(answer.id);
    if ('rows' in answer) return waiter?.resolve(answer.rows);
    waiter?.reject(asStoreError(errorOf(answer.failure)));
    if (answer.failure.fatal === true) this.#break(errorOf(answer.failure));
  }

  #break(error: Error): void {
    if (this.#broken !== undefined) return;
    this.#broken = error;
    this.#log.error(
      { err: error.message },
      'The embedded store has stopped; it is opened again. If its disk is full, make room.',
    );
    for (const waiter of this.#waiters.values()) waiter.reject(asStoreError(error));
    this.#waiters.clear();
    this.#worker.removeAllListeners();
    // It may be thrown by a thread that is about to end.
    this.#worker.on('error', () => undefined);
    // What is open for one purpose only is opened anew by whoever has it.
    if (this.#lock !== null) this.#reopening = this.#reopen();
  }

  async #reopen(): Promise<void> {
    await this.#worker.terminate();
    const { signal } = this.#closing;
    for (let delay_ms = REOPEN_AFTER_MS; ; delay_ms = Math.min(2 * delay_ms, REOPEN_MOST_MS)) {
      await pause(delay_ms, undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return;
      try {
        this.#worker = await startWorker({ data_dir: this.#directory });
        break;
      } catch (error) {
        this.#log.warn({ error }, 'The embedded store cannot be opened again yet.');
      }
    }
    this.#listen(this.#worker);
    this.#broken = undefined;
    this.#log.info({}, 'The embedded store is open again.');
  }
}

function errorOf({ message, code }: Failure): Error {
  return Object.assign(new Error(message), code === undefined ? {} : { code });
}
