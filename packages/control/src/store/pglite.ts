import { chmodSync, mkdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { Log } from '@flotilla/core';
import { type DataDirLock, lockDataDir } from './data-dir-lock.ts';
import { asStoreError } from './failure.ts';
import type { Answer, Failure, Opened, Request, Work, WorkerOptions } from './pglite-messages.ts';
import { startUpkeep } from './pglite-upkeep.ts';
import type { Engine, Param, Sql, Statement } from './sql.ts';

/**
 * The embedded store as the main thread sees it: the lock on the data directory, the worker that owns the database, and
 * the requests that wait for its answers. PGlite never runs on this thread, where a long statement would stop beats.
 *
 *     opening ── worker says so ──▶ open ── close() ──▶ closed
 *                                    └── worker dies ──▶ broken: what waits and what comes is `unavailable`
 */
export async function openPglite(data_dir: string, log: Log): Promise<Engine> {
  const directory = resolve(data_dir);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  chmodSync(directory, 0o700);
  const lock = lockDataDir(directory);
  try {
    const worker = await startWorker({ data_dir: directory });
    return new Pglite(worker, lock, log);
  } catch (error) {
    lock.release();
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`The embedded store in ${directory} could not be opened: ${reason}`, { cause: error });
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

interface Waiter {
  resolve(rows: unknown[]): void;
  reject(error: Error): void;
}

class Pglite implements Engine {
  readonly kind = 'embedded';
  readonly durability = 'process death';
  readonly #worker: Worker;
  readonly #lock: DataDirLock;
  readonly #stopUpkeep: () => void;
  readonly #waiters = new Map<number, Waiter>();
  #requests = 0;
  #transactions = 0;
  #broken: Error | undefined;

  constructor(worker: Worker, lock: DataDirLock, log: Log) {
    this.#worker = worker;
    this.#lock = lock;
    worker.on('message', (answer: Answer) => this.#settle(answer));
    worker.on('error', (error) => this.#break(error, log));
    worker.on('exit', (code) =>
      this.#break(new Error(`The thread of the embedded store ended with code ${code}.`), log),
    );
    this.#stopUpkeep = startUpkeep(this, log);
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

  async close(): Promise<void> {
    this.#stopUpkeep();
    if (this.#broken === undefined) {
      await this.#ask({ do: 'close' });
      this.#broken = new Error('The store is closed.');
    }
    await this.#worker.terminate();
    this.#lock.release();
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

  #settle(answer: Answer): void {
    const waiter = this.#waiters.get(answer.id);
    this.#waiters.delete(answer.id);
    if ('rows' in answer) waiter?.resolve(answer.rows);
    else waiter?.reject(asStoreError(errorOf(answer.failure)));
  }

  #break(error: Error, log: Log): void {
    if (this.#broken !== undefined) return;
    this.#broken = error;
    log.error({ err: error.message }, 'The embedded store has stopped; restart this process.');
    for (const waiter of this.#waiters.values()) waiter.reject(asStoreError(error));
    this.#waiters.clear();
  }
}

function errorOf({ message, code }: Failure): Error {
  return Object.assign(new Error(message), code === undefined ? {} : { code });
}
