import type { ReadyLane } from '@flotilla/core';
import { encode } from '../json.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { notSpared } from './spared.ts';

const statement = prepared(
  'ready-jobs',
  `with over as materialized (
     select id from jobs
     where state = 'queued' and not_before is not null and not_before <= (select ${NOW_MS})
     order by not_before limit $1 for no key update skip locked),
   ready as (
     update jobs j set not_before = null from over where j.id = over.id returning j.lane, j.order_key, j.priority)
   select distinct on (lane) lane, order_key, priority from ready order by lane, order_key`,
);

export async function readyJobs(sql: Sql, limit: number): Promise<ReadyLane[]> {
  return sql.query<ReadyLane>(statement, [limit]);
}

/** One index probe a lane, however many jobs wait in it: `jobs_ready` is walked from one lane's head to the next. */
const lanes = prepared(
  'ready-lanes',
  `with recursive step as (
     (select lane, order_key, priority from jobs
      where state = 'queued' and not attached and not_before is null and lane > $2
      order by lane, order_key, id limit 1)
     union all
     select next.lane, next.order_key, next.priority from step cross join lateral (
       select lane, order_key, priority from jobs
       where state = 'queued' and not attached and not_before is null and lane > step.lane
       order by lane, order_key, id limit 1) next)
   select lane, order_key, priority from step limit $1`,
);

/** The first of each index, so it costs the same with ten thousand jobs as with one. */
const due = prepared(
  'next-due',
  `select least(
     (select deadline_at from jobs
      where deadline_at is not null and state in ('queued', 'leased', 'running')
        and ${notSpared('$1')} order by deadline_at limit 1),
     (select not_before from jobs
      where state = 'queued' and not_before is not null order by not_before limit 1)) - ${NOW_MS} as ms`,
);

export async function readyLanes(sql: Sql, limit: number, after: string): Promise<ReadyLane[]> {
  return sql.query<ReadyLane>(lanes, [limit, after]);
}

export async function nextDue(sql: Sql, spared: readonly string[]): Promise<number | null> {
  const [row] = await sql.query<{ ms: number | null }>(due, [encode(spared)]);
  return row?.ms ?? null;
}
