import { existsSync, globSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { PGlite } from '@electric-sql/pglite';
import { copyChanges } from './pglite-copy.ts';
import type { Answer, Failure, Opened, Request, WorkerOptions } from './pglite-messages.ts';
import { PgliteSession } from './pglite-session.ts';

/**
 * The thread of the embedded store: one PGlite, which has one connection and blocks its thread while it works.
 *
 * Requests are served in order of arrival, one at a time. A transaction owns the connection from `begin` to `end`:
 *
 *     free ── begin ──▶ held(transaction) ── end, or nothing heard for 10 s ──▶ free
 *
 * After a PANIC, as where the log finds no room on the disk, PGlite keeps its locks, and the next statement would wait for
 * them on this thread for ever. So it is told (`fatal`), nothing more is served, and the main thread replaces this one.
 *
 * While it is held only its own requests are served; the others wait. A holder that falls silent is rolled back, and
 * what it sends afterwards is refused. When the process dies, what was not committed is gone.
 */
const IDLE_IN_TRANSACTION_MS = 10_000;

const START_PARAMS = [
  ...PGlite.defaultStartParams,
  // PostgreSQL's own 128 MB are zeroed at each start: that was half of the time to open a store, and 110 MB of memory.
  // The whole of a home's store fits into this, and what does not is in the cache of the file system.
  ...['-c', 'shared_buffers=32MB'],
  // As on a server (postgres.ts): the plans of a new store are made while its tables are empty, and kept. Without this, claims
  // and ends read all jobs until the first upkeep has analyzed them, and took four times as long after 10,000 jobs.
  ...['-c', 'enable_seqscan=off'],
];

const OLDEST_LOG = 'select pg_walfile_name(redo_lsn) as file from pg_control_checkpoint()';

const port = parentPort!;
const waiting: Request[] = [];
let holder: number | null = null;
let working = false;
let idle: NodeJS.Timeout | undefined;

let session: PgliteSession;
try {
  session = new PgliteSession(await open((workerData as WorkerOptions).data_dir));
  port.on('message', (request: Request) => {
    waiting.push(request);
    if (!working) void work();
  });
  port.postMessage({ opened: true } satisfies Opened);
} catch (error) {
  port.postMessage({ opened: false, failure: failureOf(error) } satisfies Opened);
}

/**
 * An initialisation that is interrupted leaves a directory that cannot be opened: so it happens beside the final place,
 * which only a whole one is renamed to. The caller holds the lock, hence leftovers are nobody's.
 */
async function open(data_dir: string): Promise<PGlite> {
  const final = join(data_dir, 'store');
  for (const leftover of globSync(['store.new-*', 'store.copy-*'], { cwd: data_dir })) {
    rmSync(join(data_dir, leftover), { recursive: true });
  }
  if (!existsSync(final)) {
    const fresh = join(data_dir, `store.new-${process.pid}`);
    const pglite = await PGlite.create(fresh, { startParams: START_PARAMS });
    await pglite.close();
    renameSync(fresh, final);
  }
  return PGlite.create(final, { startParams: START_PARAMS });
}

async function work(): Promise<void> {
  working = true;
  clearTimeout(idle);
  for (let request = next(); request !== undefined; request = next()) {
    try {
      const rows = await serve(request);
      port.postMessage({ id: request.id, rows } satisfies Answer);
    } catch (error) {
      const failure = failureOf(error);
      port.postMessage({ id: request.id, failure } satisfies Answer);
      if (failure.fatal === true) return; // and stays at work: what comes is not begun
    }
  }
  working = false;
  if (holder !== null) idle = setTimeout(() => void abandon(), IDLE_IN_TRANSACTION_MS);
}

/** The next request that may be served: anybody's, or only the holder's. */
function next(): Request | undefined {
  if (holder === null) return waiting.shift();
  const index = waiting.findIndex((request) => 'transaction' in request && request.transaction === holder);
  return index < 0 ? undefined : waiting.splice(index, 1)[0];
}

async function serve(request: Request): Promise<unknown[]> {
  switch (request.do) {
    case 'query':
      if (request.transaction !== null) assertHeld(request.transaction);
      return session.query(request.name, request.text, request.params);
    case 'begin':
      await session.query('', 'begin', []);
      holder = request.transaction;
      return [];
    case 'end':
      assertHeld(request.transaction);
      holder = null;
      await session.query('', request.commit ? 'commit' : 'rollback', []);
      return [];
    case 'copy': {
      // What lies in memory only is written, so that the copy opens without a long recovery.
      await session.query('', 'checkpoint', []);
      const [oldest] = await session.query('', OLDEST_LOG, []);
      const { data_dir } = workerData as WorkerOptions;
      copyChanges(join(data_dir, 'store'), request.to, request.noted, (oldest as { file: string }).file);
      return [];
    }
    case 'close':
      await session.close();
      return [];
  }
}

function assertHeld(transaction: number): void {
  if (holder !== transaction)
    throw new Error('The transaction was rolled back: nothing was heard of it for 10 s.');
}

async function abandon(): Promise<void> {
  holder = null;
  await session.query('', 'rollback', []);
  if (!working) await work();
}

function failureOf(error: unknown): Failure {
  const failure: Failure = { message: error instanceof Error ? error.message : String(error) };
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') failure.code = error.code;
  if (isFatal(error)) failure.fatal = true;
  return failure;
}

function isFatal(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  // The code itself has given up, or what it calls `abort`.
  if (error.name === 'RuntimeError') return true;
  return 'severity' in error && (error.severity === 'PANIC' || error.severity === 'FATAL');
}
