import type { Log } from '@flotilla/core';
import { prepared, type Sql } from './sql.ts';

/**
 * What a PostgreSQL server's background processes would do, and PGlite has none of: vacuum the table that needs it
 * most, and write a checkpoint, without which the log grows for ever (600 MB after 500 MB of inserts) and the next start
 * after a crash has all of it to replay.
 * One table a round, so that the one connection is never gone for long.
 */
const INTERVAL_MS = 30_000;
const LOG_BYTES = 64 * 1024 * 1024;

/** Counts are published at most once a second otherwise. */
const publish = prepared('upkeep-publish', 'select pg_stat_force_next_flush()');
const neediest = prepared(
  'upkeep-neediest',
  `select relname as table from pg_stat_user_tables
   where n_dead_tup > 500 + 0.1 * n_live_tup or n_ins_since_vacuum > 50000 + 0.2 * n_live_tup
     or n_mod_since_analyze > 1000 + 0.2 * n_live_tup
   order by n_dead_tup desc, n_ins_since_vacuum desc limit 1`,
);
const logLength = prepared(
  'upkeep-log',
  `select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), redo_lsn)::bigint as bytes from pg_control_checkpoint()`,
);

export function startUpkeep(sql: Sql, log: Log): () => void {
  let running = false;
  const timer = setInterval(() => {
    if (running) return;
    running = true;
    upkeep(sql)
      .catch((error: unknown) =>
        log.warn({ err: String(error) }, 'Upkeep of the embedded store failed; it will be tried again.'),
      )
      .finally(() => {
        running = false;
      });
  }, INTERVAL_MS);
  timer.unref();
  return () => clearInterval(timer);
}

/** @returns what was done, for tests */
export async function upkeep(
  sql: Sql,
  log_bytes = LOG_BYTES,
): Promise<{ vacuumed: string | null; checkpoint: boolean }> {
  await sql.query(publish);
  const [needy] = await sql.query<{ table: string }>(neediest);
  if (needy !== undefined) await sql.query(`vacuum (analyze) "${needy.table}"`);
  const [written] = await sql.query<{ bytes: number }>(logLength);
  const checkpoint = (written?.bytes ?? 0) > log_bytes;
  if (checkpoint) await sql.query('checkpoint');
  return { vacuumed: needy?.table ?? null, checkpoint };
}
