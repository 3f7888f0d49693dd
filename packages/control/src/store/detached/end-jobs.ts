import type { Cancellation, EndedJob, UsageRecord } from '@flotilla/core';
import { encode } from '../json.ts';
import { promptEstimate, USAGE_COLUMNS, served } from '../job-columns.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';
import { notSpared } from './spared.ts';

/**
 * Cancel and expire end what is open, whoever holds it, with the one usage row that every job has. The attempt that was
 * under way keeps its story, and the caller gets its fence, to tell the node; its slot is free when the node says so,
 * never here. What the attempt has used is the node's to say, and that comes later: until then the row has an estimate.
 */
const ending = (chosen: string) => `
  with now as materialized (select ${NOW_MS} as ms),
   chosen as materialized (${chosen}),
   ended as (
     update jobs j
     set state = chosen.end_state, error_code = chosen.end_code, error_message = chosen.end_message,
       finished_at = now.ms, deadline_at = null, not_before = null
     from chosen, now where j.id = chosen.id),
   story as (
     insert into attempts (job, attempt, node, provider, backend, epoch, outcome, code, message,
       offered_at, started_at, ended_at)
     select id, attempt, ${served('node')}, null, epoch, end_code, end_code, end_message, offered_at, started_at, now.ms
     from chosen, now where node is not null
     on conflict do nothing),
   bill (${USAGE_COLUMNS}) as materialized (
     select id, request_id, key, model, operation, ${served('node')}, end_code, end_status, attempt,
       ${promptEstimate('started_at', 'chosen.id')}, 0, 0, true,
       greatest(0, coalesce(offered_at, now.ms) - created_at), null::bigint, greatest(0, now.ms - created_at), created_at
     from chosen, now),
   used as (
     insert into usage (${USAGE_COLUMNS}, provisional)
     select ${USAGE_COLUMNS}, node is not null or provider is not null from bill
     on conflict do nothing),
   bodies as (
     update job_bodies b set erase_at = now.ms + b.retention_ms from chosen, now where b.job = chosen.id)
  select id, end_state as state, end_code as error_code, attempt, chosen.node, epoch, to_jsonb(bill) as usage
  from chosen join bill on bill.job = chosen.id`;

const ROW = 'id, attempt, node, epoch, offered_at, started_at, request_id, key, model, operation, created_at';

const cancel = prepared(
  'cancel-job',
  ending(`select ${ROW}, 'cancelled' as end_state, 'cancelled' as end_code, 499 as end_status, $2::text as end_message
    from jobs where id = $1 and not attached and finished_at is null for no key update`),
);

/** By the store's clock, which set the deadlines too. */
const expire = prepared(
  'expire-jobs',
  ending(`select ${ROW}, 'timed_out' as end_state,
      case state when 'running' then 'run_timeout' else 'queue_timeout' end as end_code, 504 as end_status,
      case state when 'running' then 'The work ran longer than its limit.'
        else 'No slot became free before the queue deadline.' end as end_message
    from jobs
    where deadline_at is not null and deadline_at <= (select ms from now) and state in ('queued', 'leased', 'running')
      and ${notSpared('$2')}
    order by deadline_at limit $1 for no key update skip locked`),
);

interface EndedRow {
  id: string;
  state: EndedJob['state'];
  error_code: string;
  attempt: number;
  node: string | null;
  epoch: number | null;
  usage: UsageRecord;
}

export async function cancelJob(sql: Sql, id: string, message: string): Promise<Cancellation> {
  const [row] = await sql.query<EndedRow>(cancel, [id, message]);
  if (row !== undefined) return { cancelled: endedJob(row) };
  const known = await sql.query('select id from jobs where id = $1 and not attached', [id]);
  return { refused: known.length > 0 ? 'ended' : 'unknown' };
}

export async function expireJobs(sql: Sql, limit: number, spared: readonly string[]): Promise<EndedJob[]> {
  return (await sql.query<EndedRow>(expire, [limit, encode(spared)])).map(endedJob);
}

function endedJob({ id, state, error_code, attempt, node, epoch, usage }: EndedRow): EndedJob {
  const fence = node === null || epoch === null ? null : { id, attempt, node, epoch };
  return { id, state, error_code, fence, usage };
}
