import type { RetentionLimits, SweepResult } from '@flotilla/core';
import { makeId } from '@flotilla/protocol';
import { prepared, type Sql } from './sql.ts';

const DAY_MS = 86_400_000;

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
     select job from usage where created_at < $1 order by created_at limit $2 for update skip locked),
   gone as (delete from usage where job in (select job from old))
   select count(*) as count from old`,
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

export async function sweep(sql: Sql, limits: RetentionLimits, now: number): Promise<SweepResult> {
  const count = async (statement: typeof sweepJobs, params: (string | number)[]) =>
    (await sql.query<{ count: number }>(statement, params))[0]?.count ?? 0;
  const { batch } = limits;
  const jobsBefore = now - limits.jobs_ms;
  return {
    jobs: await count(sweepJobs, [firstIdOf(jobsBefore), jobsBefore, batch]),
    usage: await count(sweepUsage, [now - limits.usage_ms, batch]),
    tokens: await count(sweepTokens, [now - DAY_MS, batch]),
    credentials: await count(sweepCredentials, [now - DAY_MS, batch]),
  };
}

/** The smallest id that a job made at this time can have. */
function firstIdOf(wall_ms: number): string {
  return makeId('job', Math.max(0, wall_ms), new Uint8Array(10));
}
