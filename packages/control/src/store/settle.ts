import type { Settlement } from '@flotilla/core';
import {
  ATTEMPT_COLUMNS,
  ATTEMPT_TYPES,
  JOB_COLUMNS,
  JOB_TYPES,
  USAGE_COLUMNS,
  USAGE_TYPES,
} from './job-columns.ts';
import { encode } from './json.ts';
import { prepared, type Sql } from './sql.ts';

/**
 * The hottest statement of the product: job, attempts and usage of a whole batch in one statement.
 *
 * A job that is settled stays as it is, attempts and usage included, so the same batch may be sent again after a lost
 * answer. One exception: a row that another replica ended because it believed the owner dead (`orphaned`) is completed
 * by its owner, who knows better.
 *
 * Measured on 2 shared cores of an AMD EPYC, load average 3, rows settled a second with 1, 30 and 300 a batch:
 *   PGlite through its thread     1,400   6,200   8,000      CPU of the thread a row: 0.42, 0.14, 0.11 ms
 *   PostgreSQL 15, fsync on       1,300   7,900  11,300      CPU of this process a row: 0.27, 0.03, 0.01 ms
 * A row in a large batch costs a fraction of a row alone, so all that ended while the last batch was in flight goes in
 * the next one. Tried and not better, by PGlite's CPU a row at 30 a batch:
 * one parameter for all, as json, +25 % (each `->` reads the text again); positional arrays instead of names −5 %, and
 * unreadable; attempts as a jsonb column of jobs −5 %; no secondary index −25 %. As jsonb, which is made a tree before it
 * is looked up field by field, the same on PGlite; on PostgreSQL +10 % with 30 a batch, +70 % with 300.
 * Without a kept plan (pglite-session.ts) everything costs nearly double.
 */
const statement = prepared(
  'settle',
  `with done as (
     insert into jobs (${JOB_COLUMNS})
     select ${JOB_COLUMNS} from json_to_recordset($1::json) as r (${JOB_TYPES})
     on conflict (id) do update
       set state = excluded.state, error_code = excluded.error_code, error_message = excluded.error_message,
           finished_at = excluded.finished_at, orphaned = false
       where jobs.attached and (jobs.finished_at is null or jobs.orphaned)
     returning id),
   story as (
     insert into attempts (${ATTEMPT_COLUMNS})
     select ${ATTEMPT_COLUMNS} from json_to_recordset($2::json) as r (${ATTEMPT_TYPES})
     where job in (select id from done)
     on conflict do nothing)
   insert into usage (${USAGE_COLUMNS})
   select ${USAGE_COLUMNS} from json_to_recordset($3::json) as r (${USAGE_TYPES})
   where job in (select id from done)
   on conflict do nothing`,
);

export async function settle(sql: Sql, batch: Settlement[]): Promise<void> {
  if (batch.length === 0) return;
  const once = firstOfEach(batch);
  await sql.query(statement, [
    encode(once.map(({ job }) => job)),
    encode(once.flatMap(({ job, attempts }) => attempts.map((attempt) => ({ job: job.id, ...attempt })))),
    encode(once.map(({ usage }) => usage)),
  ]);
}

/**
 * One statement cannot insert a job twice; the first settlement counts, as it would in two batches. In order of id, so
 * that batches which share jobs cannot wait for each other.
 */
function firstOfEach(batch: Settlement[]): Settlement[] {
  const ids = new Set<string>();
  return batch
    .filter(({ job }) => ids.size < ids.add(job.id).size)
    .sort((a, b) => (a.job.id < b.job.id ? -1 : 1));
}
