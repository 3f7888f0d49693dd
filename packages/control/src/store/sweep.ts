import type { RetentionLimits, SweepResult } from '@flotilla/core';
import { type IdKind, makeId } from '@flotilla/protocol';
import { sweepAudit } from './audit.ts';
import { prepared, type Sql } from './sql.ts';

const DAY_MS = 86_400_000;
/** A month, and more than any clock is wrong by. */
const FOLD_AFTER_MS = 40 * DAY_MS;
const HOUR_MS = 3_600_000;

/**
 * Ids sort by creation, and a job ends after it began: those that ended before a time have ids below that time's. So
 * the primary key finds them, and the hot insert pays for no index on finished_at. `skip locked`: replicas that sweep
 * at once share the work.
 */
const sweepJobs = prepared(
  'sweep-jobs',
  `with old as materialized (
     select id from jobs where id < $1 and finished_at < $2 order by id limit $3 for update skip locked),
   gone as (delete from jobs where id in (select id from old)),
   stories as (delete from attempts where job in (select id from old)),
   bodies as (delete from job_bodies where job in (select id from old))
   select count(*) as count from old`,
);
const sweepUsage = prepared(
  'sweep-usage',
  `with old as materialized (
     select job, key, created_at, prompt_tokens + completion_tokens as tokens
     from usage where created_at < $1 order by created_at limit $2 for update skip locked),
   gone as (delete from usage where job in (select job from old)),
   kept as (
     insert into swept_usage (key, day, tokens)
     select key, created_at - created_at % ${DAY_MS}, sum(tokens)::bigint from old where key is not null
     group by 1, 2 order by 1, 2
     on conflict (key, day) do update set tokens = swept_usage.tokens + excluded.tokens)
   select count(*) as count from old`,
);
/** Days that no period but `total` holds become one row a key, so that the table does not grow with time. */
const foldSwept = prepared(
  'fold-swept',
  `with old as (delete from swept_usage where day > 0 and day < $1 returning key, tokens)
   insert into swept_usage (key, day, tokens)
   select key, 0, sum(tokens)::bigint from old group by key order by key
   on conflict (key, day) do update set tokens = swept_usage.tokens + excluded.tokens`,
);
const sweepTokens = prepared(
  'sweep-tokens',
  `with old as materialized (
     select id from enrolment_tokens where expires_at < $1 limit $2 for update skip locked),
   gone as (delete from enrolment_tokens where id in (select id from old))
   select count(*) as count from old`,
);
const sweepCredentials = prepared(
  'sweep-credentials',
  `with old as materialized (
     select id from node_credentials where expires_at < $1 limit $2 for update skip locked),
   gone as (delete from node_credentials where id in (select id from old))
   select count(*) as count from old`,
);

/** What was asked an hour ago is of no interest; the lists that it brought are kept elsewhere. */
const sweepDiscoveries = prepared(
  'sweep-discoveries',
  `with old as materialized (
     select id from model_discoveries where id < $1 and finished_at is not null
     order by id limit $2 for update skip locked),
   gone as (delete from model_discoveries where id in (select id from old))
   select count(*) as count from old`,
);

export async function sweep(sql: Sql, limits: RetentionLimits, now: number): Promise<SweepResult> {
  const count = async (statement: typeof sweepJobs, params: (string | number)[]) =>
    (await sql.query<{ count: number }>(statement, params))[0]?.count ?? 0;
  const { batch } = limits;
  const jobsBefore = now - limits.jobs_ms;
  await sql.query(foldSwept, [now - FOLD_AFTER_MS]);
  return {
    jobs: await count(sweepJobs, [firstIdOf('job', jobsBefore), jobsBefore, batch]),
    usage: await count(sweepUsage, [now - limits.usage_ms, batch]),
    tokens: await count(sweepTokens, [now - DAY_MS, batch]),
    credentials: await count(sweepCredentials, [now - DAY_MS, batch]),
    audit: await sweepAudit(sql, now - limits.audit_ms, batch),
    discoveries: await count(sweepDiscoveries, [firstIdOf('discovery', now - HOUR_MS), batch]),
  };
}

/** The smallest id that something of this kind made at this time can have. */
function firstIdOf(kind: IdKind, wall_ms: number): string {
  return makeId(kind, Math.max(0, wall_ms), new Uint8Array(10));
}
