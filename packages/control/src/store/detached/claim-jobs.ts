import type { ClaimedJob, ClaimRequest } from '@flotilla/core';
import { encode } from '../json.ts';
import { NOW_MS, prepared, type Sql } from '../sql.ts';

/**
 * One look-up in `jobs_ready` a lane, no deeper than its free slots; of the heads the smallest order keys, and each to
 * the node whose slots its place in the lane falls into. `skip locked`: replicas that claim at once take different jobs.
 * A planner cannot know how few a claim takes: of a long line it expects a tenth, and would read both tables whole to
 * join them with those (1 s with 80,000 jobs in one lane). So the line has a length that it knows, jobs are looked up by
 * an array of ids, which it takes for short, and their bodies one by one.
 */
/** More than a claim asks for of a lane; only what is taken out of the line is locked. */
const HEADS_MOST = 1000;
const statement = prepared(
  'claim-jobs',
  `with want as materialized (
     select lane, node, epoch, sum(free) over (partition by lane order by node) as upto
     from jsonb_to_recordset($1::jsonb) as r (lane text, node text, epoch bigint, free bigint)),
   depth as materialized (
     select lane, least(max(upto), $3::bigint) as free from want group by lane),
   head as materialized (
     select depth.lane, ready.id, ready.order_key
     from depth cross join lateral (
       select id, order_key from (
         select id, order_key from jobs
         where lane = depth.lane and state = 'queued' and not attached and not_before is null
         order by order_key, id limit ${HEADS_MOST}
         for update skip locked) line
       limit depth.free) ready),
   placed as (
     select *, row_number() over (partition by lane order by order_key, id) as place,
       row_number() over (order by order_key, id) as overall
     from head),
   given as (
     select placed.id, taker.node, taker.epoch
     from placed cross join lateral (
       select node, epoch from want
       where want.lane = placed.lane and want.upto >= placed.place order by want.upto limit 1) taker
     where placed.overall <= $3::bigint),
   leased as (
     update jobs j
     set state = 'leased', attempt = j.attempt + 1, node = given.node, epoch = given.epoch, replica = $2,
       offered_at = ${NOW_MS}, started_at = null
     from given where j.id = any (array(select id from given)) and j.id = given.id
     returning j.id, j.attempt, j.node, j.epoch, j.kind, j.lane, j.key, j.model, j.operation, j.request_id,
       j.order_key, j.priority, j.failures, j.max_attempts, j.on_node_loss, j.run_timeout_ms, j.traceparent, j.created_at)
   select leased.*, body.request, coalesce(octet_length(body.request), 0) as request_bytes
   from leased left join lateral (
     select request from job_bodies where job = leased.id limit 1) body on true
   order by leased.order_key, leased.id`,
);

export async function claimJobs(sql: Sql, { replica, lanes, limit }: ClaimRequest): Promise<ClaimedJob[]> {
  const open = lanes.filter(({ free }) => free > 0);
  if (open.length === 0 || limit <= 0) return [];
  return sql.query<ClaimedJob>(statement, [encode(open), replica, limit]);
}
