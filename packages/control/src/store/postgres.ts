import type { Log } from '@flotilla/core';
import { isId } from '@flotilla/protocol';
import pg from 'pg';
import { asStoreError } from './failure.ts';
import {
  BEGIN_SNAPSHOT,
  decode,
  type Engine,
  type Param,
  type Snapshot,
  type Sql,
  type Statement,
} from './sql.ts';

/**
 * PostgreSQL >= 15 through a pool. A server that restarts costs the statements under way (`unavailable`) and nothing
 * else: idle connections that break are logged and replaced at the next use.
 */
const APPLICATION = 'flotilla';
/** Before a replica's id. */
const SESSION_PREFIX = `${APPLICATION} `;
const CONNECTIONS = 10;
const CONNECT_TIMEOUT_MS = 5_000;
const STATEMENT_TIMEOUT_MS = 10_000;
/** The client's own limit, for a server that has vanished without a word. */
const ANSWER_GRACE_MS = 2_000;
const IDLE_IN_TRANSACTION_MS = 10_000;
const OLDEST_VERSION = 150_000;
/** A snapshot is read page by page, as fast as its reader takes them; the reader has a limit of its own. */
const SNAPSHOT_STATEMENT_TIMEOUT_MS = 60_000;

export interface PostgresLimits {
  /** How long a statement may take; a restore builds and checks whole tables in one. */
  statement_timeout_ms?: number;
  /** Whose sessions these are, for `pg_stat_activity`. */
  replica?: string | undefined;
}

export async function openPostgres(
  database_url: string,
  log: Log,
  { statement_timeout_ms = STATEMENT_TIMEOUT_MS, replica }: PostgresLimits = {},
): Promise<Engine> {
  const session = replica === undefined ? undefined : `${SESSION_PREFIX}${replica}`;
  const pool = new pg.Pool({
    ...connection(database_url, statement_timeout_ms),
    ...(session !== undefined && { application_name: session }),
    max: CONNECTIONS,
    idleTimeoutMillis: 60_000,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS,
  });
  pool.on('error', (error) => log.warn({ err: error.message }, 'An idle connection to PostgreSQL was lost.'));
  try {
    await checkServer(pool, log);
  } catch (error) {
    await pool.end();
    throw error;
  }
  return new Postgres(pool, database_url, session);
}

function connection(database_url: string, statement_timeout_ms: number) {
  return {
    connectionString: database_url,
    application_name: APPLICATION,
    // Each statement reads a few rows by an index. To compile one takes longer (0.2 to 0.4 s) than to run it; and a plan
    // that was made while a table was empty, and is kept, would read it whole for as long as nobody has analyzed it.
    options: '-c jit=off -c enable_seqscan=off',
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    statement_timeout: statement_timeout_ms,
    query_timeout: statement_timeout_ms + ANSWER_GRACE_MS,
    types: { getTypeParser: ((oid: number) => (text: string) => decode(oid, text)) as never },
  };
}

class Postgres implements Engine {
  readonly kind = 'postgres';
  readonly durability = 'power loss';
  readonly #pool: pg.Pool;
  readonly #database_url: string;
  /** What its sessions are called; that of a store that no replica opened is no replica's. */
  readonly #session: string | undefined;

  constructor(pool: pg.Pool, database_url: string, session: string | undefined) {
    this.#pool = pool;
    this.#database_url = database_url;
    this.#session = session;
  }

  query<Row>(statement: Statement | string, params: readonly Param[] = []): Promise<Row[]> {
    return run<Row>(this.#pool, statement, params);
  }

  async transaction<T>(body: (sql: Sql) => Promise<T>, statement_timeout_ms?: number): Promise<T> {
    const client = await this.#pool.connect().catch((error: unknown) => {
      throw asStoreError(error);
    });
    // While a client is out of the pool its errors are ours; the statement that met one rejects by itself.
    const ignore = () => undefined;
    client.on('error', ignore);
    let broken = false;
    try {
      await run(client, 'begin', []);
      const sql = new PostgresTransaction(client, statement_timeout_ms);
      if (statement_timeout_ms !== undefined) {
        await sql.query(`set local statement_timeout = ${statement_timeout_ms}`);
      }
      const result = await body(sql);
      await run(client, 'commit', []);
      return result;
    } catch (error) {
      broken = await run(client, 'rollback', []).then(
        () => false,
        () => true,
      );
      throw error;
    } finally {
      client.off('error', ignore);
      client.release(broken);
    }
  }

  /**
   * Told only where a session that is missing means a process that is gone:
   * not behind a pooler (PgBouncer), whose sessions are its own, named after whom it serves at the moment (it is known by
   * the session's number, which the server says and the pooler makes up); and not where DATABASE_URL names sessions
   * otherwise. A session that bears no replica's name is nobody's, or of one whose row says that it has no such ones.
   */
  async openSessions(): Promise<ReadonlySet<string> | null> {
    const client = await this.#pool.connect().catch((error: unknown) => {
      throw asStoreError(error);
    });
    let broken = true;
    try {
      const rows = await run<{ pid: number; own: boolean; application_name: string }>(
        client,
        `select pid, pid = pg_backend_pid() as own, application_name from pg_stat_activity
         where datname = current_database() and usesysid is not null`,
        [],
      );
      broken = false;
      const own = rows.find((row) => row.own);
      const { processID } = client as unknown as { processID: number };
      if (own?.pid !== processID || own.application_name !== this.#session) return null;
      const ids = rows
        .filter(({ application_name: name }) => name.startsWith(SESSION_PREFIX))
        .map(({ application_name: name }) => name.slice(SESSION_PREFIX.length));
      return new Set(ids.filter((id) => isId('replica', id)));
    } finally {
      client.release(broken);
    }
  }

  /** On a connection of its own: one of the pool's would be missing for as long as the snapshot is read. */
  async snapshot(): Promise<Snapshot> {
    const client = new pg.Client(connection(this.#database_url, SNAPSHOT_STATEMENT_TIMEOUT_MS));
    client.on('error', () => undefined); // the statement that meets it rejects by itself
    const close = () => client.end();
    try {
      await client.connect();
      await client.query(BEGIN_SNAPSHOT);
    } catch (error) {
      await close().catch(() => undefined);
      throw asStoreError(error);
    }
    return { sql: new PostgresTransaction(client), close };
  }

  async close(): Promise<void> {
    await this.#pool.end();
  }
}

class PostgresTransaction implements Sql {
  readonly #client: pg.ClientBase;
  readonly #limits: { query_timeout?: number };

  constructor(client: pg.ClientBase, statement_timeout_ms?: number) {
    this.#client = client;
    this.#limits =
      statement_timeout_ms === undefined ? {} : { query_timeout: statement_timeout_ms + ANSWER_GRACE_MS };
  }

  query<Row>(statement: Statement | string, params: readonly Param[] = []): Promise<Row[]> {
    return run<Row>(this.#client, statement, params, this.#limits);
  }

  transaction<T>(): Promise<T> {
    return Promise.reject(new Error('A transaction is already open; use the Sql that it was given.'));
  }
}

async function run<Row>(
  on: pg.Pool | pg.ClientBase,
  statement: Statement | string,
  params: readonly Param[],
  limits: { query_timeout?: number } = {},
): Promise<Row[]> {
  const values = [...params];
  const query = { ...(typeof statement === 'string' ? { text: statement } : statement), values, ...limits };
  try {
    return (await on.query(query)).rows as Row[];
  } catch (error) {
    throw asStoreError(error);
  }
}

/** Refuses a server that is too old, and says where its settings break the promise that a commit survives power loss. */
async function checkServer(pool: pg.Pool, log: Log): Promise<void> {
  const { rows } = await pool
    .query(
      `select current_setting('server_version_num')::int as number, current_setting('server_version') as version,
         current_setting('fsync') as fsync, current_setting('synchronous_commit') as synchronous_commit`,
    )
    .catch((error: unknown) => {
      throw unreachable(error);
    });
  const server = rows[0] as { number: number; version: string; fsync: string; synchronous_commit: string };
  if (server.number < OLDEST_VERSION) {
    throw new Error(`PostgreSQL ${server.version} is too old: Flotilla needs version 15 or newer.`);
  }
  if (server.fsync === 'off' || server.synchronous_commit === 'off') {
    log.warn(
      { fsync: server.fsync, synchronous_commit: server.synchronous_commit },
      'This PostgreSQL acknowledges commits before they are on disk: a power loss can lose acknowledged work. ' +
        'Set fsync and synchronous_commit to on.',
    );
  }
}

function unreachable(error: unknown): Error {
  const reason = error instanceof Error ? error.message || error.name : String(error);
  return new Error(
    `PostgreSQL could not be reached: ${reason}. Check DATABASE_URL and that the server accepts this user, ` +
      'or unset DATABASE_URL to use the embedded store.',
    { cause: error },
  );
}
