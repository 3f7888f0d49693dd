import type { Reservation, UsageRecord, UsageWord } from '@flotilla/core';
import { USAGE_COLUMNS } from '../job-columns.ts';
import { encode } from '../json.ts';
import { prepared, type Sql } from '../sql.ts';

const find = prepared(
  'find-usage',
  `select ${USAGE_COLUMNS} from usage
   where job in (select jsonb_array_elements_text($1::jsonb))`,
);

/** The row of a job is that of its last attempt: what an older one has used is not counted, as for attached work. */
const correct = prepared(
  'correct-usage',
  `with word as materialized (
     select * from jsonb_to_recordset($1::jsonb) as r (job text, attempt bigint, node text, prompt_tokens bigint,
       completion_tokens bigint, cached_tokens bigint, estimated boolean)),
   own as materialized (
     select word.*, u.provisional and u.attempts = word.attempt and coalesce(u.node, u.provider) = word.node as waits
     from usage u join word using (job)
     order by u.job for no key update of u)
   update usage u
   set prompt_tokens = own.prompt_tokens, completion_tokens = own.completion_tokens,
     cached_tokens = own.cached_tokens, estimated = own.estimated, provisional = false
   from own where u.job = own.job and own.waits`,
);

const reservations = prepared(
  'load-reservations',
  // The open ones first (`offset 0`), then in order: in the order of the key it would read past all that have ended.
  `select job, key, tokens, created_at from (
     select id as job, key, reserved_tokens as tokens, created_at from jobs
     where finished_at is null and not attached and key is not null and reserved_tokens is not null offset 0) open
   order by job limit $1`,
);

export async function findUsage(sql: Sql, jobs: readonly string[]): Promise<UsageRecord[]> {
  return jobs.length === 0 ? [] : sql.query<UsageRecord>(find, [encode(jobs)]);
}

export async function correctUsage(sql: Sql, batch: UsageWord[]): Promise<void> {
  if (batch.length > 0) await sql.query(correct, [encode(batch)]);
}

export function loadReservations(sql: Sql, limit: number): Promise<Reservation[]> {
  return sql.query<Reservation>(reservations, [limit]);
}
